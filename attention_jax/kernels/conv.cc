// The gradient of a convolution with respect to its kernel, whose long sums over images and positions XLA computes slowly on CPU.
//
// A unit of work takes a group of channels through a part of the batch. It copies a block of rows, or of small images, so that
// the numbers of a tile lie together, and then sums products tile by tile. Neither groups nor parts depend on the number of
// threads, so that the result is the same to the bit on any machine with the same vectors.

constexpr int kColumns = 16, kVectors = kColumns / kLanes;  // features of a tile
constexpr int kTileRows = kLanes == 4 ? 5 : kRows;          // channels of a tile, whose sums fit into the registers
constexpr int kTiles = 32 / kTileRows;                      // of a group
constexpr int kBlock = 1 << 16;                             // numbers of a block, which fit into the second cache
constexpr int kParts = 8;

struct Conv {
  int batch, height, width, channels, out_height, out_width, features, kernel_height, kernel_width;
  int stride_y, stride_x, pad_y, pad_x, dilation_y, dilation_x;
  int rows = 1, images = 1;  // of a block: rows of the output

  int SeenRows() const { return (rows - 1) * stride_y + (kernel_height - 1) * dilation_y + 1; }
  int SeenColumns() const { return (out_width - 1) * stride_x + (kernel_width - 1) * dilation_x + 1; }
  int RowBlocks() const { return (out_height + rows - 1) / rows; }
  int Blocks() const { return (batch + images - 1) / images * RowBlocks(); }
  int Groups() const { return (channels + kTiles * kTileRows - 1) / (kTiles * kTileRows); }
  int FeatureTiles() const { return (features + kColumns - 1) / kColumns; }
};

// Where the numbers of a tile are: images, rows and columns of the output, and the distances between them.
struct Positions {
  int images, rows, columns;
  int64_t x_image, x_row, x_column, y_image;
};

// sums[kTileRows, kColumns] = x[positions, kTileRows]^T y[positions, kColumns].
__attribute__((noinline)) void Tile(const float* x, const float* y, const Positions& at, float* result) {
  Vector sums[kTileRows][kVectors] = {};
  for (int image = 0; image < at.images; image++) {
    for (int row = 0; row < at.rows; row++) {
      const float* left = x + image * at.x_image + row * at.x_row;
      const float* right = y + image * at.y_image + static_cast<int64_t>(row) * at.columns * kColumns;
      for (int column = 0; column < at.columns; column++, left += at.x_column, right += kColumns) {
        Vector features[kVectors];
        for (int v = 0; v < kVectors; v++) features[v] = *reinterpret_cast<const Vector*>(right + v * kLanes);
        for (int r = 0; r < kTileRows; r++) {
          const float number = left[r];
          for (int v = 0; v < kVectors; v++) sums[r][v] += features[v] * number;
        }
      }
    }
  }
  for (int r = 0; r < kTileRows; r++) {
    for (int v = 0; v < kVectors; v++) *reinterpret_cast<Vector*>(result + r * kColumns + v * kLanes) = sums[r][v];
  }
}

// Copies `count` of `size` numbers, and zeros for the others.
template <int size>
inline void Copy(const float* from, int count, float* to) {
  if (count >= size) {
    for (int i = 0; i < size; i++) to[i] = from[i];
  } else {
    for (int i = 0; i < size; i++) to[i] = i < count ? from[i] : 0.0f;
  }
}

// Writes the sums over the blocks from `begin` to `end` of a group of channels: [h, w, C, F] at `result`.
void SumBlocks(const Conv& c, const float* x, const float* of_y, float* result, int channel, int begin, int end) {
  static thread_local std::vector<float> xs, ys;
  const int seen_rows = c.SeenRows(), seen_columns = c.SeenColumns(), feature_tiles = c.FeatureTiles();
  const int left = c.channels - channel, tiles = std::min(kTiles, (left + kTileRows - 1) / kTileRows);
  Positions at{c.images, c.rows, c.out_width};
  at.x_column = c.stride_x * kTileRows;
  at.x_row = static_cast<int64_t>(c.stride_y) * seen_columns * kTileRows;
  at.x_image = static_cast<int64_t>(seen_rows) * seen_columns * kTileRows;
  at.y_image = static_cast<int64_t>(c.rows) * c.out_width * kColumns;
  const int64_t x_tile = c.images * at.x_image, y_tile = c.images * at.y_image;
  xs.resize(tiles * x_tile);
  ys.resize(feature_tiles * y_tile);
  for (int block = begin; block < end; block++) {
    const int first = block / c.RowBlocks() * c.images, top = block % c.RowBlocks() * c.rows;
    at.images = std::min(c.images, c.batch - first);
    at.rows = std::min(c.rows, c.out_height - top);
    for (int image = 0; image < at.images; image++) {
      for (int place = 0; place < seen_rows * seen_columns; place++) {
        const int row = top * c.stride_y - c.pad_y + place / seen_columns, column = place % seen_columns - c.pad_x;
        const bool inside = 0 <= row && row < c.height && 0 <= column && column < c.width;
        const int64_t pixel = (static_cast<int64_t>(first + image) * c.height + row) * c.width + column;
        for (int t = 0; t < tiles; t++) {
          float* to = &xs[t * x_tile + image * at.x_image + static_cast<int64_t>(place) * kTileRows];
          Copy<kTileRows>(x + pixel * c.channels + channel + t * kTileRows, inside ? left - t * kTileRows : 0, to);
        }
      }
      const float* from = of_y + (static_cast<int64_t>(first + image) * c.out_height + top) * c.out_width * c.features;
      for (int place = 0; place < at.rows * c.out_width; place++, from += c.features) {
        for (int f = 0; f < feature_tiles; f++) {
          float* to = &ys[f * y_tile + image * at.y_image + static_cast<int64_t>(place) * kColumns];
          Copy<kColumns>(from + f * kColumns, c.features - f * kColumns, to);
        }
      }
    }
    for (int tap = 0; tap < c.kernel_height * c.kernel_width; tap++) {
      const int row = tap / c.kernel_width * c.dilation_y, column = tap % c.kernel_width * c.dilation_x;
      for (int unit = 0; unit < tiles * feature_tiles; unit++) {
        const int t = unit / feature_tiles, f = unit % feature_tiles;
        alignas(64) float sums[kTileRows * kColumns];
        Tile(&xs[t * x_tile + (static_cast<int64_t>(row) * seen_columns + column) * kTileRows], &ys[f * y_tile], at, sums);
        const int width = std::min(kColumns, c.features - f * kColumns);
        for (int r = 0; r < std::min(kTileRows, left - t * kTileRows); r++) {
          const int64_t entry = static_cast<int64_t>(tap) * c.channels + channel + t * kTileRows + r;
          float* to = result + entry * c.features + f * kColumns;
          for (int i = 0; i < width; i++) to[i] = (block == begin ? 0.0f : to[i]) + sums[r * kColumns + i];
        }
      }
    }
  }
}

// x [B, H, W, C], of_y [B, H', W', F] -> [h, w, C, F]; `how` has the strides, the padding at the top and left, the dilation.
ffi::Error KernelGradient(ffi::ThreadPool pool, Numbers x, Numbers of_y, ffi::Span<const int64_t> how,
                          ffi::Result<Numbers> of_kernel) {
  const auto in = x.dimensions(), out = of_y.dimensions(), kernel = of_kernel->dimensions();
  Conv c{int(in[0]),     int(in[1]),     int(in[2]),  int(in[3]),  int(out[1]), int(out[2]), int(out[3]), int(kernel[0]),
         int(kernel[1]), int(how[0]), int(how[1]), int(how[2]), int(how[3]), int(how[4]), int(how[5])};
  const int64_t row = static_cast<int64_t>(c.out_width) * c.FeatureTiles() * kColumns +
                      static_cast<int64_t>(c.stride_y) * c.SeenColumns() * std::min(c.channels, kTiles * kTileRows);
  c.rows = std::clamp<int64_t>(kBlock / row, 1, c.out_height);
  if (c.rows == c.out_height) c.images = std::clamp<int64_t>(kBlock / (row * c.rows), 1, std::max(1, c.batch / kParts));
  const int groups = c.Groups(), parts = groups < kParts ? std::min(c.Blocks(), kParts) : 1;
  const int64_t size = of_kernel->element_count();
  std::vector<float> others((parts - 1) * size);
  const float *x_data = x.typed_data(), *y_data = of_y.typed_data();
  float *first = of_kernel->typed_data(), *more = others.data();
  InParallel(pool, groups * parts, [=](int unit) {
    const int part = unit / groups, begin = c.Blocks() * part / parts, end = c.Blocks() * (part + 1) / parts;
    float* result = part == 0 ? first : more + (part - 1) * size;
    SumBlocks(c, x_data, y_data, result, unit % groups * kTiles * kTileRows, begin, end);
  });
  for (int part = 1; part < parts; part++, more += size) {
    for (int64_t i = 0; i < size; i++) first[i] += more[i];
  }
  return ffi::Error::Success();
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(aj_kernel_gradient, KernelGradient,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Numbers>()
                                  .Arg<Numbers>()
                                  .Attr<ffi::Span<const int64_t>>("how")
                                  .Ret<Numbers>());
