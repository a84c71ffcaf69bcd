/* Checks which libnccl this process has mapped, for programs in C and C++. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Returns 0 if the file that MAYPOLE_CLIENTS_LIBRARY names is mapped and no other libnccl; or, if
 * none is wanted, if no libnccl is mapped. */
static int only_our_library_is_loaded(int wanted) {
  const char* ours = getenv("MAYPOLE_CLIENTS_LIBRARY");
  FILE* maps = fopen("/proc/self/maps", "r");
  char line[4096];
  int mapped = 0;
  if (!ours || !maps) return 20;
  while (fgets(line, sizeof line, maps)) {
    char* file = strchr(line, '/');
    if (!file || !strstr(file, "/libnccl")) continue;
    file[strcspn(file, "\n")] = 0;
    if (!wanted || strcmp(file, ours)) {
      fprintf(stderr, "mapped: %s\n", file);
      return 21;
    }
    mapped++;
  }
  fclose(maps);
  return mapped > 0 || !wanted ? 0 : 22;
}
