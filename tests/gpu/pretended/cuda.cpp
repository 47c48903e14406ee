// Eight CUDA devices for a CPU build of torch, as far as autograd and FakeTensorMode ask for them.
//
// No kernel runs and no device memory exists. Two facts of CUDA are kept: the current device belongs to a thread and is
// 0 at first, and pinned memory is known by its address.
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <map>
#include <mutex>

namespace {

using c10::Device;
using c10::DeviceIndex;

constexpr DeviceIndex devices = 8;
thread_local DeviceIndex current_index = 0;
// Pinned blocks by address, so that "is this memory pinned?" has a true answer.
std::mutex lock;
std::map<uintptr_t, size_t> blocks;

void release(void* block) {
  {
    std::lock_guard<std::mutex> held(lock);
    blocks.erase(reinterpret_cast<uintptr_t>(block));
  }
  c10::GetCPUAllocator()->raw_deallocate(block);
}

struct PinnedMemory final : c10::Allocator {
  c10::DataPtr allocate(size_t size) override {
    void* block = c10::GetCPUAllocator()->raw_allocate(size ? size : 1);
    std::lock_guard<std::mutex> held(lock);
    blocks[reinterpret_cast<uintptr_t>(block)] = size;
    return {block, block, &release, Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t size) const override { default_copy_data(to, from, size); }
};

struct Guard final : c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA> {
  Device exchangeDevice(Device next) const override {
    const Device before = getDevice();
    current_index = next.index();
    return before;
  }
  Device getDevice() const override { return {c10::DeviceType::CUDA, current_index}; }
  void setDevice(Device next) const override { current_index = next.index(); }
  void uncheckedSetDevice(Device next) const noexcept override { current_index = next.index(); }
  c10::Stream getStream(Device of) const noexcept override {
    return c10::Stream(c10::Stream::DEFAULT, of.has_index() ? of : getDevice());
  }
  c10::Stream exchangeStream(c10::Stream next) const noexcept override { return getStream(next.device()); }
  DeviceIndex deviceCount() const noexcept override { return devices; }
};

struct Hooks final : at::CUDAHooksInterface {
  explicit Hooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  int getNumGPUs() const override { return devices; }
  DeviceIndex deviceCount() const override { return devices; }
  DeviceIndex current_device() const override { return current_index; }
  DeviceIndex getCurrentDevice() const override { return current_index; }
  void setCurrentDevice(DeviceIndex index) const override { current_index = index; }
  bool isPinnedPtr(const void* address) const override {
    const auto at = reinterpret_cast<uintptr_t>(address);
    std::lock_guard<std::mutex> held(lock);
    const auto after = blocks.upper_bound(at);
    if (after == blocks.begin()) return false;
    const auto& [begin, size] = *std::prev(after);
    return at < begin + size;
  }
  c10::Allocator* getPinnedMemoryAllocator() const override {
    static PinnedMemory memory;
    return &memory;
  }
};

}  // namespace

namespace at {
using CUDAHooks = Hooks;
REGISTER_CUDA_HOOKS(CUDAHooks)
}  // namespace at
C10_REGISTER_GUARD_IMPL(CUDA, Guard)

extern "C" {
int pretended_current_device() { return current_index; }
void pretended_set_device(int index) { current_index = static_cast<DeviceIndex>(index); }
}
