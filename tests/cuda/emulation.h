// Runs CUDA device code on the host, one thread block at a time: the .cuh files of csrc/cuda compile with a host
// compiler when this header comes first.
//
// Every thread of a block is a fiber with a stack of its own. It runs until it meets a barrier or a shuffle and goes on
// when all the threads that must meet have come, in an order that `schedule` shuffles. What makes a launch fail, with a
// message:
//   - barriers or shuffles that some threads do not reach, or reach elsewhere;
//   - shared memory that is read before it is written, outside its bounds, or touched by two threads, one of them
//     writing, with no barrier in between, whatever the order in which they happened to run;
//   - a fault in global memory: the tests place tensors against pages that must not be touched.
#pragma once

#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define SMARTCS_UNROLL

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};
struct uint2 {
  uint32_t x, y;
};
struct uint4 {
  uint32_t x, y, z, w;
};
using cudaStream_t = int;

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// A place in the source where threads meet.
struct Site {
  const char* file = nullptr;
  int line = 0;
  bool operator==(const Site& other) const { return line == other.line && std::strcmp(file, other.file) == 0; }
  std::string text() const { return std::string(std::strrchr(file, '/') + 1) + ":" + std::to_string(line); }
};

enum class State { runnable, at_barrier, at_shuffle, done };

struct Fiber {
  ucontext_t start;
  jmp_buf position;
  std::unique_ptr<char[]> stack;
  bool started = false;
  State state = State::runnable;
  Site site;
  unsigned mask = 0;
  int source = 0;        // the lane to read from
  uint64_t deposit = 0;  // what this lane offers
  uint64_t result = 0;
};

struct Watched {
  virtual void reset() = 0;
};

constexpr size_t kStackBytes = 128 << 10;
constexpr int kWarp = 32;

class Machine {
 public:
  unsigned schedule = 0;  // 0: threads in order, 1: in reverse, else shuffled from this seed
  int running = 0;        // thread
  int epoch = 0;          // counts barriers; shared memory belongs to one thread or is only read within one
  std::vector<Watched*> shared;

  // kernel(argument) for every thread of every block.
  void launch(int64_t blocks, int threads, void (*kernel)(const void*), const void* argument) {
    if (threads <= 0 || threads > 1024 || threads % kWarp != 0) throw Error("a block of " + std::to_string(threads));
    gridDim.x = static_cast<unsigned>(blocks);
    blockDim.x = static_cast<unsigned>(threads);
    order_ = schedule;
    kernel_ = kernel;
    argument_ = argument;
    for (int block : arranged(static_cast<int>(blocks))) {
      blockIdx.x = static_cast<unsigned>(block);
      run_block(threads);
    }
  }

  void wait(State state, Site site) {
    Fiber& self = fibers_[running];
    self.state = state;
    self.site = site;
    if (_setjmp(self.position) == 0) _longjmp(scheduler_, 1);
  }

  uint64_t shuffle(unsigned mask, uint64_t value, int source, Site site) {
    Fiber& self = fibers_[running];
    if ((mask >> (running % kWarp) & 1) == 0 || (mask >> source & 1) == 0) {
      throw Error("shuffle at " + site.text() + ": the mask leaves out the lane or the one it reads");
    }
    self.mask = mask;
    self.source = source;
    self.deposit = value;
    wait(State::at_shuffle, site);
    return self.result;
  }

  void begin(int thread) {
    try {
      kernel_(argument_);
    } catch (const Error& error) {
      if (problem_.empty()) problem_ = "thread " + std::to_string(thread) + ": " + error.what();
    }
    fibers_[thread].state = State::done;
    _longjmp(scheduler_, 1);
  }

  [[noreturn]] void fault() { siglongjmp(fault_, 1); }

 private:
  std::vector<Fiber> fibers_;
  jmp_buf scheduler_;
  sigjmp_buf fault_;
  uint64_t order_ = 0;
  void (*kernel_)(const void*) = nullptr;
  const void* argument_ = nullptr;
  std::string problem_;
  ucontext_t fresh_;

  // 0 to count - 1 in the order of the schedule.
  std::vector<int> arranged(int count) {
    std::vector<int> list(static_cast<size_t>(count));
    for (int i = 0; i < count; ++i) list[i] = schedule == 1 ? count - 1 - i : i;
    for (int i = count - 1; i > 0 && schedule > 1; --i) {
      order_ = order_ * 6364136223846793005u + 1442695040888963407u;
      std::swap(list[i], list[(order_ >> 33) % static_cast<unsigned>(i + 1)]);
    }
    return list;
  }

  void run_block(int threads);
  void resume(int thread);
  bool release(int threads);
};

inline Machine& machine() {
  static Machine instance;
  return instance;
}

inline void enter(int thread) {
  machine().begin(thread);
}
inline void on_fault(int) {
  machine().fault();
}

inline void Machine::resume(int thread) {
  Fiber& fiber = fibers_[thread];
  running = thread;
  threadIdx.x = static_cast<unsigned>(thread);
  if (_setjmp(scheduler_) != 0) return;
  if (fiber.started) _longjmp(fiber.position, 1);
  fiber.started = true;
  setcontext(&fiber.start);
}

// Lets those go on whose barrier or shuffle is complete; whether there were any.
inline bool Machine::release(int threads) {
  bool any = false;
  for (int first = 0; first < threads; first += kWarp) {
    for (int lane = 0; lane < kWarp; ++lane) {
      Fiber& leader = fibers_[first + lane];
      if (leader.state != State::at_shuffle) continue;
      const auto in_mask = [&](int l) { return (leader.mask >> l & 1) != 0; };
      const auto waits = [&](const Fiber& f) {
        return f.state == State::at_shuffle && f.mask == leader.mask && f.site == leader.site;
      };
      bool complete = true;
      for (int l = 0; l < kWarp; ++l) complete = complete && (!in_mask(l) || waits(fibers_[first + l]));
      if (!complete) continue;
      for (int l = 0; l < kWarp; ++l) {
        if (!in_mask(l)) continue;
        fibers_[first + l].result = fibers_[first + fibers_[first + l].source].deposit;
        fibers_[first + l].state = State::runnable;
      }
      any = true;
    }
  }
  if (any) return true;
  const auto at_first = [&](const Fiber& f) { return f.state == State::at_barrier && f.site == fibers_[0].site; };
  if (!std::all_of(fibers_.begin(), fibers_.begin() + threads, at_first)) return false;
  for (int t = 0; t < threads; ++t) fibers_[t].state = State::runnable;
  ++epoch;
  return true;
}

inline void Machine::run_block(int threads) {
  if (fibers_.empty()) getcontext(&fresh_);
  while (fibers_.size() < static_cast<size_t>(threads)) {
    fibers_.emplace_back();
    fibers_.back().stack.reset(new char[kStackBytes]);
  }
  for (int t = 0; t < threads; ++t) {
    Fiber& fiber = fibers_[t];
    fiber.start = fresh_;
    fiber.start.uc_stack.ss_sp = fiber.stack.get();
    fiber.start.uc_stack.ss_size = kStackBytes;
    makecontext(&fiber.start, reinterpret_cast<void (*)()>(enter), 1, t);
    fiber.started = false;
    fiber.state = State::runnable;
  }
  ++epoch;
  for (Watched* array : shared) array->reset();
  problem_.clear();
  struct sigaction action = {}, previous[2];
  action.sa_handler = on_fault;
  action.sa_flags = SA_NODEFER;
  sigaction(SIGSEGV, &action, &previous[0]);
  sigaction(SIGBUS, &action, &previous[1]);
  if (sigsetjmp(fault_, 1) != 0)
    problem_ = "thread " + std::to_string(running) + ": touches memory that is not its own";
  for (bool any = true; any && problem_.empty();) {
    any = false;
    for (int t : arranged(threads)) {
      if (fibers_[t].state != State::runnable || !problem_.empty()) continue;
      resume(t);
      any = true;
    }
    any = release(threads) || any;
  }
  sigaction(SIGSEGV, &previous[0], nullptr);
  sigaction(SIGBUS, &previous[1], nullptr);
  if (!problem_.empty()) throw Error(problem_);
  for (int t = 0; t < threads; ++t) {
    if (fibers_[t].state == State::done) continue;
    throw Error("divergence: thread " + std::to_string(t) + " waits at " + fibers_[t].site.text() +
                " for threads that do not come");
  }
}

// Shared memory that knows who touched what.
template <class T, int kCount>
class Shared : Watched {
 public:
  Shared() {
    machine().shared.push_back(this);
    reset();
  }
  void reset() override { std::fill(cells_, cells_ + kCount, Cell{}); }

  class Reference {
   public:
    Reference(Shared& array, int64_t index) : array_(array), index_(index) {
      if (index < 0 || index >= kCount) throw Error("shared memory: index " + std::to_string(index));
    }
    operator T() const { return array_.read(index_); }
    void operator=(T value) const { array_.write(index_, value); }

   private:
    Shared& array_;
    int64_t index_;
  };
  Reference operator[](int64_t index) { return {*this, index}; }

 private:
  struct Cell {
    T value{};
    int written_at = -1, writer = -1, read_at = -1, reader = -1;  // epochs and threads; reader -2: several
  };
  Cell cells_[kCount];

  T read(int64_t index) {
    Cell& cell = cells_[index];
    const Machine& m = machine();
    if (cell.written_at < 0) throw Error("shared memory: read before it was written");
    if (cell.written_at == m.epoch && cell.writer != m.running)
      throw Error("race: read with no barrier after the write");
    cell.reader = cell.read_at == m.epoch && cell.reader != m.running ? -2 : m.running;
    cell.read_at = m.epoch;
    return cell.value;
  }
  void write(int64_t index, T value) {
    Cell& cell = cells_[index];
    const Machine& m = machine();
    if (cell.read_at == m.epoch && cell.reader != m.running)
      throw Error("race: written with no barrier after the read");
    if (cell.written_at == m.epoch && cell.writer != m.running) throw Error("race: two threads write");
    cell.value = value;
    cell.writer = m.running;
    cell.written_at = m.epoch;
  }
};

template <class T>
T shuffle_xor(unsigned mask, T value, int offset, Site site) {
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = machine().shuffle(mask, bits, (machine().running % kWarp) ^ offset, site);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace emulation

#define __syncthreads() emulation::machine().wait(emulation::State::at_barrier, {__FILE__, __LINE__})
#define __shfl_xor_sync(mask, value, offset) emulation::shuffle_xor(mask, value, offset, {__FILE__, __LINE__})
#define SMARTCS_SHARED(type, name, count) static emulation::Shared<type, count> name

namespace smartcs::cuda {
template <class Arguments>
void launch(void (*kernel)(Arguments), int64_t blocks, int threads, cudaStream_t, const Arguments& arguments) {
  struct Call {
    void (*kernel)(Arguments);
    const Arguments& arguments;
  } const call{kernel, arguments};
  const auto run = [](const void* what) {
    static_cast<const Call*>(what)->kernel(static_cast<const Call*>(what)->arguments);
  };
  if (blocks > 0) emulation::machine().launch(blocks, threads, run, &call);
}
}  // namespace smartcs::cuda

#include "emulation_numbers.h"
