/* Stops the program, saying where, if an answer is not the expected one. */
#include <nccl.h>
#include <stdio.h>
#include <stdlib.h>

#define EXPECT(condition)                                                                  \
  do {                                                                                     \
    if (!(condition)) {                                                                    \
      fprintf(stderr, "%s:%d: not so: %s; last error: %s\n", __FILE__, __LINE__, #condition, \
              ncclGetLastError(NULL));                                                     \
      exit(1);                                                                             \
    }                                                                                      \
  } while (0)

#define OK(call) EXPECT((call) == ncclSuccess)
