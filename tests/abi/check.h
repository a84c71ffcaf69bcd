/* EXPECT and OK: end the program with the line and the last error if a condition does not hold. */
#include <nccl.h>
#include <stdio.h>
#include <stdlib.h>

#define EXPECT(condition)                                                                    \
  do {                                                                                       \
    if (!(condition)) {                                                                      \
      fprintf(stderr, "%s:%d: failed: %s; last error: %s\n", __FILE__, __LINE__, #condition, \
              ncclGetLastError(NULL));                                                       \
      exit(1);                                                                               \
    }                                                                                        \
  } while (0)

#define OK(call) EXPECT((call) == ncclSuccess)
