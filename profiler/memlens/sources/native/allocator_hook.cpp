// Records what torch's CPU allocator hands out and takes back, on every thread.
//
// Registers an allocator that asks the one before it, and notes time, address, size and Python stack of
// each block. Plain C functions, called through ctypes. Compiled on the user's machine against the
// headers of the torch that is installed (`build.py`), since no binary fits all of them.
//
// A block keeps the deleter it was made with, so the library stays loaded for the life of the process;
// after `memlens_stop` that deleter only passes blocks on.

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/StorageImpl.h>

#include <chrono>
#include <cstdint>
#include <mutex>
#include <new>
#include <unordered_map>
#include <vector>

// Python's own functions, found in the process when the library is loaded: Python.h may not be there.
extern "C" {
struct _object;
int PyGILState_Ensure(void);
void PyGILState_Release(int);
_object* PyEval_GetFrame(void);
_object* PyFrame_GetBack(_object*);
_object* PyFrame_GetCode(_object*);
int PyFrame_GetLineNumber(_object*);
// Python 3.11 and later. Finding the line takes a walk through the code's line table, so it is left to
// those who read the stack.
__attribute__((weak)) int PyFrame_GetLasti(_object*);
void Py_DecRef(_object*);
}

namespace {

struct Event {
  int64_t time_ns;
  uint64_t address;
  int64_t size_bytes;  // positive: handed out; negative: taken back
  int32_t stack;       // number of its stack, -1 for none
  int32_t thread;      // 0: the thread of the session; 1: another
};

struct Frame {
  _object* code;  // kept alive for good, so that its address stays its own
  int64_t place;  // offset of the instruction, or -1 - line where Python does not tell it
};

// Frames of all stacks seen, one after the other, each stack innermost frame first.
struct Stacks {
  std::vector<Frame> frames;
  std::vector<int64_t> ends;
  std::unordered_multimap<uint64_t, int32_t> by_hash;
};

std::mutex mutex;
bool recording = false;
int64_t total_bytes = 0;  // handed out less taken back, since memlens_start
int stack_depth = 0;
c10::Allocator* base = nullptr;
c10::DeleterFnPtr base_deleter = nullptr;
int64_t session = 0;
thread_local int64_t session_of_thread = -1;  // the session that was started on this thread
// Never destroyed: blocks are given back until the very end of the process.
std::vector<Event>& events = *new std::vector<Event>;
std::vector<Event>& drained = *new std::vector<Event>;
Stacks& stacks = *new Stacks;
// Blocks that carry our deleter. Kept across sessions: a block may outlive the one it was made in.
std::unordered_map<void*, size_t>& sizes = *new std::unordered_map<void*, size_t>;

bool is_session_thread() {
  return session_of_thread == session;
}

int64_t now_ns() {
  // The clock of Python's time.time_ns(), with which observers stamp their marks.
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

// With the mutex held.
void note(void* data, int64_t size, int32_t stack) {
  if (recording) {
    total_bytes += size;
    events.push_back(
        {now_ns(), reinterpret_cast<uint64_t>(data), size, stack, is_session_thread() ? 0 : 1});
  }
}

// Number of the Python stack of this thread. Takes the GIL, which most ops have released.
int32_t current_stack() {
  static thread_local std::vector<Frame> walk;
  walk.clear();
  int state = PyGILState_Ensure();
  uint64_t hash = 1469598103934665603ull;
  _object* frame = PyEval_GetFrame();
  bool owned = false;
  while (frame != nullptr && static_cast<int>(walk.size()) < stack_depth) {
    _object* code = PyFrame_GetCode(frame);
    Frame here{
        code,
        PyFrame_GetLasti != nullptr ? PyFrame_GetLasti(frame) : -1 - PyFrame_GetLineNumber(frame)};
    Py_DecRef(code);  // the frame keeps it for now
    hash = (hash ^ reinterpret_cast<uint64_t>(here.code)) * 1099511628211ull;
    hash = (hash ^ static_cast<uint64_t>(here.place)) * 1099511628211ull;
    walk.push_back(here);
    _object* caller = PyFrame_GetBack(frame);
    if (owned) {
      Py_DecRef(frame);
    }
    frame = caller;
    owned = true;
  }
  int32_t number = -1;
  if (!walk.empty()) {
    // The GIL guards `stacks`: only the session's thread comes here, and drains hold it as well.
    auto range = stacks.by_hash.equal_range(hash);
    for (auto it = range.first; it != range.second && number < 0; ++it) {
      int64_t begin = it->second == 0 ? 0 : stacks.ends[it->second - 1];
      if (stacks.ends[it->second] - begin == static_cast<int64_t>(walk.size())) {
        bool same = true;
        for (size_t i = 0; i < walk.size() && same; ++i) {
          const Frame& known = stacks.frames[begin + i];
          same = known.code == walk[i].code && known.place == walk[i].place;
        }
        number = same ? it->second : -1;
      }
    }
    if (number < 0) {
      number = static_cast<int32_t>(stacks.ends.size());
      _object* top = PyEval_GetFrame();
      bool top_owned = false;
      for (size_t i = 0; i < walk.size() && top != nullptr; ++i) {
        PyFrame_GetCode(top);  // a reference that stays, so that the address stays its own
        _object* caller = PyFrame_GetBack(top);
        if (top_owned) {
          Py_DecRef(top);
        }
        top = caller;
        top_owned = true;
      }
      if (top != nullptr && top_owned) {
        Py_DecRef(top);
      }
      stacks.frames.insert(stacks.frames.end(), walk.begin(), walk.end());
      stacks.ends.push_back(static_cast<int64_t>(stacks.frames.size()));
      stacks.by_hash.emplace(hash, number);
    }
  }
  if (frame != nullptr && owned) {
    Py_DecRef(frame);
  }
  PyGILState_Release(state);
  return number;
}

void release(void* data) {
  {
    // Noted before the block can be handed out again to another thread.
    std::lock_guard<std::mutex> guard(mutex);
    auto found = sizes.find(data);
    if (found != sizes.end()) {
      note(data, -static_cast<int64_t>(found->second), -1);
      sizes.erase(found);
    }
  }
  base_deleter(data);
}

struct RecordingAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t size) override {
    c10::DataPtr block = base->allocate(size);
    void* data = block.get();
    // Only blocks that are their own context can be given another deleter and remain what they are.
    if (data == nullptr || block.get_context() != data || block.get_deleter() != base_deleter) {
      return block;
    }
    int32_t stack = recording && stack_depth > 0 && is_session_thread() ? current_stack() : -1;
    {
      std::lock_guard<std::mutex> guard(mutex);
      sizes[data] = size;
      note(data, static_cast<int64_t>(size), stack);
    }
    auto device = block.device();
    block.release_context();
    return {data, data, &release, device};
  }
  c10::DeleterFnPtr raw_deleter() const override {
    return &release;
  }
  void copy_data(void* to, const void* from, std::size_t count) const override {
    base->copy_data(to, from, count);
  }
};

RecordingAllocator hook;

}  // namespace

extern "C" {

// Starts recording; the calling thread is the session's, whose Python stacks are noted.
// Returns 0, or 1 when the allocator in place makes blocks that can not be followed.
int memlens_start(int depth) {
  std::lock_guard<std::mutex> guard(mutex);
  c10::Allocator* current = c10::GetCPUAllocator();
  if (current == &hook || current->raw_deleter() == nullptr) {
    return 1;
  }
  base = current;
  base_deleter = current->raw_deleter();
  total_bytes = 0;
  events.clear();
  stack_depth = depth;
  session_of_thread = ++session;
  c10::SetCPUAllocator(&hook);
  recording = c10::GetCPUAllocator() == &hook;
  return recording ? 0 : 1;
}

void memlens_stop() {
  std::lock_guard<std::mutex> guard(mutex);
  recording = false;
  ++session;
  if (c10::GetCPUAllocator() == &hook) {
    c10::SetCPUAllocator(base);
  }
}

// Whether a storage's memory comes from the CPU allocator: else it is borrowed, mapped or shared.
int memlens_owns(const c10::StorageImpl* storage) {
  auto deleter = storage->data_ptr().get_deleter();
  return deleter != nullptr && (deleter == base_deleter || deleter == &release);
}

// Takes the events so far. They stay valid until the next call.
int64_t memlens_drain(const Event** first, int64_t* total) {
  std::lock_guard<std::mutex> guard(mutex);
  drained.clear();
  drained.swap(events);
  *first = drained.data();
  *total = total_bytes;
  return static_cast<int64_t>(drained.size());
}

// Shows all stacks so far: frames, and for each stack where its frames end. Valid until the next
// allocation of the session's thread. Called with the GIL held.
int64_t memlens_stacks(const Frame** frames, const int64_t** ends) {
  *frames = stacks.frames.data();
  *ends = stacks.ends.data();
  return static_cast<int64_t>(stacks.ends.size());
}

// For a forked child: another thread may have held the lock, and does not exist here.
void memlens_abandon() {
  new (&mutex) std::mutex();
  recording = false;
  ++session;
  events.clear();
  if (c10::GetCPUAllocator() == &hook) {
    c10::SetCPUAllocator(base);
  }
}
}
