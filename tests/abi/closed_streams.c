/*
 * A program that has closed its standard streams. The descriptors of the library get other numbers,
 * so that nothing that is printed is written to the memory of a rank or to a connection.
 */
#include "check.h"

#include <maypole.h>
#include <string.h>
#include <unistd.h>

/* Ends with the line of a failure as the status, as nothing can be printed. */
#undef EXPECT
#define EXPECT(condition) \
  do {                    \
    if (!(condition)) _exit(__LINE__); \
  } while (0)

static int is_null_device(int number) {
  char name[32], target[64] = "";
  snprintf(name, sizeof name, "/proc/self/fd/%d", number);
  return readlink(name, target, sizeof target - 1) < 0 || strcmp(target, "/dev/null") == 0;
}

int main(void) {
  ncclComm_t comms[2];
  int value[2] = {1, 2}, sum[2];
  for (int number = 0; number <= 2; number++) close(number);
  setenv("NCCL_DEBUG", "INFO", 1);
  setenv("NCCL_P2P_DISABLE", "1", 1);
  OK(ncclCommInitAll(comms, 2, NULL));
  for (int round = 0; round < 3; round++) {
    for (int number = 0; number <= 2; number++) EXPECT(is_null_device(number));
    OK(ncclGroupStart());
    for (int i = 0; i < 2; i++)
      OK(ncclAllReduce(&value[i], &sum[i], 1, ncclInt, ncclSum, comms[i], NULL));
    OK(ncclGroupEnd());
    EXPECT(sum[0] == 3 && sum[1] == 3);
    /* Also streams that are closed later. */
    close(1);
    void* memory;
    OK(ncclMemAlloc(&memory, 4096));
    EXPECT(is_null_device(1));
    OK(ncclMemFree(memory));
  }
  for (int i = 0; i < 2; i++) OK(ncclCommDestroy(comms[i]));
  return 0;
}
