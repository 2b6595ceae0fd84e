// What a decoding step on CPU spends its time in, for XLA: products of few rows by weights, and attention over a cache.
//
// The few rows of a step meet weights that fit into no cache. XLA's products wait for them; these fetch the weights of the
// next block while they compute with this one.

constexpr int kLine = 16;  // numbers in a line of cache
constexpr int kGroup = 16;  // rows of weights from one time of fetching to the next
// Columns of a block of weights. The last blocks are narrower, so that all threads end at about the same time.
constexpr int kColumns = 128, kLastColumns = 64;

// A tile of sums has at most kRows rows, and at most kVectors vectors of columns: so many that they, as many of weights and one
// of x fit into the registers.
constexpr int kVectors = 4;
constexpr int TilesFor(int rows) { return (rows + kRows - 1) / kRows; }
constexpr int VectorsFor(int tile_rows) { return std::min(kVectors, (kRegisters - 1) / (tile_rows + 1)); }
constexpr int MostVectors(int rows) { return VectorsFor((rows + TilesFor(rows) - 1) / TilesFor(rows)); }

// Rows of a block of weights: one tile alone soon wants the next block; many pay more for the sums, once a block.
constexpr int kMostDepth = 256;
constexpr int DepthFor(int rows) { return rows <= kRows ? 64 : rows < 64 ? 128 : kMostDepth; }

// Fetches a block of numbers that is needed next into the second cache, some lines at a time, so that it has asked for all
// after `times` times.
struct Ahead {
  const float* at;
  int64_t stride;
  int columns, rows, lines, column = 0;

  Ahead(const float* at, int64_t stride, int columns, int rows, int times)
      : at(at), stride(stride), columns(columns), rows(rows), lines(((columns + kLine - 1) / kLine * rows + times - 1) / times) {}

  void Fetch() {
    for (int i = 0; i < lines && rows > 0; i++) {
      __builtin_prefetch(at + column, 0, 2);
      column += kLine;
      if (column >= columns) {
        column = 0;
        at += stride;
        rows--;
      }
    }
  }
};

// y[rows, vectors * kLanes] (+)= x[rows, depth] w[depth, vectors * kLanes]; with `copies`, w is written to `dense` as well.
template <int rows, int vectors, bool copies>
inline __attribute__((always_inline)) void Tile(const float* x, int64_t x_stride, const float* w, int64_t w_stride, float* y,
                                                int64_t y_stride, bool add, int depth, Ahead& ahead, float* dense) {
  Vector sums[rows][vectors];
  for (int r = 0; r < rows; r++) {
    for (int v = 0; v < vectors; v++) {
      sums[r][v] = add ? *reinterpret_cast<const Vector*>(y + r * y_stride + v * kLanes) : Vector{};
    }
  }
  for (int begin = 0; begin < depth; begin += kGroup) {
    ahead.Fetch();
    const int end = std::min(depth, begin + kGroup);
    for (int i = begin; i < end; i++) {
      Vector weights[vectors];
      for (int v = 0; v < vectors; v++) {
        weights[v] = *reinterpret_cast<const Vector*>(w + i * w_stride + v * kLanes);
        if (copies) *reinterpret_cast<Vector*>(dense + (i * vectors + v) * kLanes) = weights[v];
      }
      for (int r = 0; r < rows; r++) {
        const float number = x[r * x_stride + i];
        for (int v = 0; v < vectors; v++) sums[r][v] += weights[v] * number;
      }
    }
  }
  for (int r = 0; r < rows; r++) {
    for (int v = 0; v < vectors; v++) *reinterpret_cast<Vector*>(y + r * y_stride + v * kLanes) = sums[r][v];
  }
}

// `Tile` of the largest of these sizes that it is asked for: `rows` from kRows down, then `vectors` from kVectors down.
template <bool copies, int most_rows = kRows, int most_vectors = kVectors, typename... Arguments>
void TileOf(int rows, int vectors, Arguments&&... arguments) {
  if constexpr (most_rows > 1) {
    if (rows < most_rows) return TileOf<copies, most_rows - 1, most_vectors>(rows, vectors, arguments...);
  }
  if constexpr (most_vectors > 1) {
    if (vectors < most_vectors) return TileOf<copies, most_rows, most_vectors - 1>(rows, vectors, arguments...);
  }
  if constexpr (most_vectors <= VectorsFor(most_rows)) Tile<most_rows, most_vectors, copies>(arguments...);
}

// y[rows, columns] (+)= x[rows, depth] w[depth, columns] of any sizes, on this thread. What is added to must have been written.
// `dense`, if not null, has room for [depth, kVectors * kLanes]: the first tile of a panel copies its weights there, where they lie
// together in the first cache, and the others read them there.
void Panels(int rows, int depth, int columns, const float* x, int64_t x_stride, const float* w, int64_t w_stride, float* y,
            int64_t y_stride, bool add, Ahead ahead, float* dense) {
  const int tiles = TilesFor(rows), most = MostVectors(rows);
  const bool copied = dense != nullptr && tiles > 1;
  int column = 0;
  while (column < columns) {
    const int vectors = std::min(most, (columns - column) / kLanes);
    for (int tile = 0; tile < tiles; tile++) {
      const int from = rows * tile / tiles, count = rows * (tile + 1) / tiles - from;
      const float *x_tile = x + from * x_stride, *w_panel = w + column;
      float* y_tile = y + from * y_stride + column;
      if (vectors > 0 && copied && tile == 0) {
        TileOf<true>(count, vectors, x_tile, x_stride, w_panel, w_stride, y_tile, y_stride, add, depth, ahead, dense);
      } else if (vectors > 0) {
        const float* w_tile = copied ? dense : w_panel;
        const int64_t stride = copied ? vectors * kLanes : w_stride;
        TileOf<false>(count, vectors, x_tile, x_stride, w_tile, stride, y_tile, y_stride, add, depth, ahead, dense);
      } else {
        for (int r = 0; r < count; r++) {
          float sum = add ? y_tile[r * y_stride] : 0.0f;
          for (int i = 0; i < depth; i++) sum += x_tile[r * x_stride + i] * w_panel[i * w_stride];
          y_tile[r * y_stride] = sum;
        }
      }
    }
    column += std::max(1, vectors * kLanes);
  }
}

// How often a call of `Panels` fetches what is ahead.
constexpr int Times(int rows, int depth, int columns) {
  return (depth + kGroup - 1) / kGroup * TilesFor(rows) * std::max(1, columns / (MostVectors(rows) * kLanes));
}

// [rows, depth] x [depth, columns] -> [rows, columns].
ffi::Error Product(ffi::ThreadPool pool, Numbers x, Numbers w, ffi::Result<Numbers> y) {
  const int rows = x.dimensions()[0], depth = x.dimensions()[1], columns = w.dimensions()[1];
  const int block = DepthFor(rows), threads = std::max<int>(1, pool.num_threads());
  const int large = std::max(0, columns - threads * kColumns) / kColumns;
  const int units = large + (columns - large * kColumns + kLastColumns - 1) / kLastColumns;
  const float *x_data = x.typed_data(), *w_data = w.typed_data();
  float* y_data = y->typed_data();
  const auto column_of = [=](int unit) {
    return std::min(columns, std::min(unit, large) * kColumns + std::max(0, unit - large) * kLastColumns);
  };

  InParallel(pool, units, [=](int unit) {
    alignas(64) float dense[kMostDepth * kVectors * kLanes];
    const int column = column_of(unit), width = column_of(unit + 1) - column;
    for (int row = 0; row < depth; row += block) {
      const int deep = std::min(block, depth - row), below = std::min(block, depth - row - deep);
      const float* w_block = w_data + static_cast<int64_t>(row) * columns + column;
      const int times = Times(rows, deep, width);
      Ahead ahead(w_block + static_cast<int64_t>(deep) * columns, columns, width, below, times);
      if (below == 0 && unit + threads < units) {  // the unit that this thread will likely take next
        const int next = column_of(unit + threads), next_width = column_of(unit + threads + 1) - next;
        ahead = Ahead(w_data + next, columns, next_width, std::min(block, depth), times);
      }
      Panels(rows, deep, width, x_data + row, depth, w_block, columns, y_data + column, columns, row > 0, ahead, dense);
    }
  });
  return ffi::Error::Success();
}

// e^x for x <= 0 to about 1e-7 of it, and e^-87 = 2e-38 below -87: Cephes' polynomial, in a form that compilers make vectors of.
inline float Exp(float x) {
  const float inside = x < -87.0f ? -87.0f : x;
  const int32_t power = static_cast<int32_t>(inside * 1.44269504f - 0.5f);
  const float r = inside - power * 0.693359375f + power * 2.12194440e-4f;
  float y = 1.9875691500e-4f;
  y = y * r + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * r * r + r + 1.0f;
  union { int32_t bits; float number; } scale = {(power + 127) << 23};
  return y * scale.number;
}

// How many keys to look at: none after the last one that any query sees, but all where one sees none, whose mean it gets.
int Used(const bool* seen, int rows, int length) {
  int used = 0;
  for (int t = 0; t < rows; t++) {
    int last = length;
    while (last > 0 && !seen[t * length + last - 1]) last--;
    used = std::max(used, last == 0 ? length : last);
  }
  return used;
}

// Queries [B * T, H * K] ask keys [B, H, K, S] and values [B, H, S, V] -> [B * T, H * V]; mask is [B, 1, T or 1, S].
ffi::Error Attend(ffi::ThreadPool pool, Numbers queries, Numbers keys, Numbers values, ffi::Buffer<ffi::PRED> mask, float scale,
                  float masked, ffi::Result<Numbers> output) {
  const auto key_sides = keys.dimensions();
  const int batch = key_sides[0], heads = key_sides[1], size = key_sides[2], length = key_sides[3];
  const int value_size = values.dimensions()[3], mask_rows = mask.dimensions()[2], asking = queries.dimensions()[0] / batch;
  const float *q_data = queries.typed_data(), *k_data = keys.typed_data(), *v_data = values.typed_data();
  const bool* mask_data = mask.typed_data();
  float* y_data = output->typed_data();
  // A thread takes heads that lie together in memory; the smaller the units, the more evenly they are shared.
  const int all = batch * heads, together = std::max<int>(1, all / (8 * std::max<int>(1, pool.num_threads())));

  InParallel(pool, (all + together - 1) / together, [=](int unit) {
    static thread_local std::vector<float> weights, of_rows;
    of_rows.resize(asking);
    int used = 0;
    for (int place = unit * together; place < std::min(all, (unit + 1) * together); place++) {
      const int64_t example = place / heads, head = place % heads;
      const float* k_head = k_data + static_cast<int64_t>(place) * size * length;
      const float* v_head = v_data + static_cast<int64_t>(place) * length * value_size;
      const bool* seen = mask_data + example * mask_rows * length;
      if (used == 0 || head == 0) used = Used(seen, mask_rows, length);
      weights.resize(static_cast<size_t>(asking) * used);

      Panels(asking, size, used, q_data + example * asking * heads * size + head * size, heads * size, k_head, length,
             weights.data(), used, false, Ahead(v_head, value_size, value_size, used, Times(asking, size, used)), nullptr);
      // Row by row within each pass, so that one row's sums do not wait for those of another.
      for (int t = 0; t < asking; t++) {
        float* __restrict weight = weights.data() + t * used;
        const bool* __restrict own = seen + (mask_rows == 1 ? 0 : t) * length;
        float largest = masked;
#pragma omp simd reduction(max : largest)
        for (int s = 0; s < used; s++) {
          weight[s] = own[s] ? weight[s] * scale : masked;
          largest = std::max(largest, weight[s]);
        }
        of_rows[t] = largest;
      }
      for (int t = 0; t < asking; t++) {
        float* __restrict weight = weights.data() + t * used;
        const float largest = of_rows[t];
        float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
        for (int s = 0; s < used; s++) {
          weight[s] = Exp(weight[s] - largest);
          sum += weight[s];
        }
        of_rows[t] = sum;
      }
      for (int t = 0; t < asking; t++) {
        float* __restrict weight = weights.data() + t * used;
        const float share = 1.0f / of_rows[t];
#pragma omp simd
        for (int s = 0; s < used; s++) weight[s] *= share;
      }
      const Ahead next(k_head + static_cast<int64_t>(size) * length, length, used, place + 1 < all ? size : 0,
                       Times(asking, used, value_size));
      Panels(asking, used, value_size, weights.data(), used, v_head, value_size,
             y_data + example * asking * heads * value_size + head * value_size, heads * value_size, false, next, nullptr);
    }
  });
  return ffi::Error::Success();
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(aj_product, Product,
                              ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Numbers>().Arg<Numbers>().Ret<Numbers>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(aj_attend, Attend,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Numbers>()
                                  .Arg<Numbers>()
                                  .Arg<Numbers>()
                                  .Arg<ffi::Buffer<ffi::PRED>>()
                                  .Attr<float>("scale")
                                  .Attr<float>("masked")
                                  .Ret<Numbers>());
