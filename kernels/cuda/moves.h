// What a program moves besides its products: images into patches, constants into place, the mean of rows.
#pragma once
#include "kernels/cuda/level.h"

namespace vitsparse::cuda {

struct PatchesParams {  // dst[b][(y x) of the patch] = pixels of the patch, flattened (channel, y, x)
  const void* images;   // [batch, channels, size, size], contiguous
  View dst;             // [batch, (size / patch)^2, channels * patch^2]
  int batch, channels, size, patch;
};

struct FillParams {
  const void* constant;  // [rows][width], the same for each image
  View dst;              // [batch, rows, width]
  int batch, rows, width;
};

struct MeanRowsParams {  // dst = mean over the rows of src
  View src;              // [batch, rows, width]
  View dst;              // [batch, 1, width]
  int batch, rows, width;
};

cudaError_t patches(const PatchesParams& params, const Context& context);
cudaError_t fill(const FillParams& params, const Context& context);
cudaError_t mean_rows(const MeanRowsParams& params, const Context& context);

}  // namespace vitsparse::cuda
