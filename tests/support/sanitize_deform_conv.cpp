// Drives mmcv's deformable convolution for the CPU with offsets that are far out or no
// numbers, forward and backward; sanitize_deform_conv.py builds and runs it.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>

using at::Tensor;
void deform_conv_forward(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, int, int, int,
                         int, int, int, int, int, int, int, int);
void deform_conv_backward_input(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor,
                                int, int, int, int, int, int, int, int, int, int, int);
void deform_conv_backward_parameters(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, int,
                                     int, int, int, int, int, int, int, int, int, float,
                                     int);

static bool finite(const Tensor &x) { return at::isfinite(x).all().item<bool>(); }

// k x k points, k apart, as token merging has them.
static void run(const char *what, double value, at::ScalarType type, int height,
                int width, int k) {
  const int batch = 2, channels = 3, outputs = 5;
  const int rows = height / k, columns = width / k;
  auto x = at::randn({batch, channels, height, width}, type);
  auto weight = at::randn({outputs, channels, k, k}, type);
  auto offsets = at::randn({batch, 2 * k * k, rows, columns}, type) * 2;
  if (*what == 'e')  // points on tokens, on the edges of the map and beyond
    offsets = at::arange(offsets.numel(), type).remainder(5).mul(5).sub(10).view(
        offsets.sizes());
  else if (*what == 'a')
    offsets.fill_(value);
  else if (*what == 'o' && offsets.numel())
    offsets.view(-1)[offsets.numel() / 2] = value;
  auto out = at::empty({batch, outputs, rows, columns}, type);
  auto none = [&] { return at::empty({0}, type); };
  deform_conv_forward(x, weight, offsets, out, none(), none(), k, k, k, k, 0, 0, 1, 1, 1,
                      1, 2);
  std::printf("forward finite %d", finite(out));
  std::fflush(stdout);
  auto dx = at::zeros_like(x), doff = at::zeros_like(offsets);
  auto dw = at::zeros_like(weight), grad = at::ones_like(out);
  deform_conv_backward_parameters(x, offsets, grad, dw, none(), none(), k, k, k, k, 0, 0,
                                  1, 1, 1, 1, 1, 2);
  std::printf(", dweight %d", finite(dw));
  std::fflush(stdout);
  deform_conv_backward_input(x, offsets, grad, dx, doff, weight, none(), k, k, k, k, 0, 0,
                             1, 1, 1, 1, 2);
  std::printf(", dx %d, doffset %d", finite(dx), finite(doff));
}

int main() {
  const struct {
    const char *what;
    double value;
  } offsets[] = {{"random", 0},     {"edges", 0},       {"all", 1e6},
                 {"all", -1e6},     {"all", 1e30},      {"all", -1e30},
                 {"all", INFINITY}, {"all", -INFINITY}, {"all", NAN},
                 {"one", NAN},      {"one", INFINITY},  {"one", 1e6}};
  const int sizes[][3] = {{1, 1, 2}, {1, 1, 1}, {2, 2, 2}, {3, 2, 2}, {7, 5, 2}, {6, 9, 2}};
  int bad = 0;
  for (auto type : {at::kFloat, at::kDouble})
    for (auto &size : sizes)
      for (auto &offset : offsets) {
        std::printf("%s %dx%d, %dx%d points, offsets: %s %g: ", at::toString(type),
                    size[0], size[1], size[2], size[2], offset.what, offset.value);
        std::fflush(stdout);
        const pid_t child = fork();  // what kills one case does not hide the others
        if (!child) {
          at::set_num_threads(1);
          at::manual_seed(0);
          try {
            run(offset.what, offset.value, type, size[0], size[1], size[2]);
          } catch (const c10::Error &error) {
            std::printf("refused: %s", error.msg().substr(0, 60).c_str());
          }
          std::fflush(stdout);
          _exit(0);
        }
        int status;
        waitpid(child, &status, 0);
        std::printf(status ? " STOPPED\n" : "\n");
        std::fflush(stdout);
        bad += status != 0;
      }
  std::printf("%d stopped\n", bad);
  return bad != 0;
}
