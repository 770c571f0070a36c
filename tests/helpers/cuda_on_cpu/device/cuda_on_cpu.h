// What rewritten kernels are compiled against (see rewrite.py). Precompiled: keep the includes few.
#pragma once
#include "copies.h"
#include "device_math.h"
#include "machine.h"
#include "memory.h"
#include "numbers.h"
#include "warp.h"

#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__
