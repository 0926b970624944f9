// The kernels for any processor; setup.py has the flags.
#include "handlers.h"
