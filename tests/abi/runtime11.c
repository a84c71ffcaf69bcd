/* What the CUDA runtime did before 12.0 when a thread chose a device: it noted the number, and made
 * no context. A test compiles this as libcudart.so.11.0. */
static __thread int chosen;

int cudaSetDevice(int device) {
  chosen = device;
  return 0;
}

int cudaGetDevice(int* device) {
  *device = chosen;
  return 0;
}
