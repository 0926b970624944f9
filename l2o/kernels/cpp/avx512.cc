// The kernels for AVX-512; setup.py has the flags.
#include "handlers.h"
