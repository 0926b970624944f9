// The kernels for AVX2 and FMA; setup.py has the flags.
#include "handlers.h"
