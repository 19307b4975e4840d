/* The least a program can do that picks one free GPU: it loads NVML, makes the fewest calls that
 * decide, and prints. It claims nothing, waits for nothing, and believes whatever it is told.
 *
 * floor [LIBRARY] */
#include <dlfcn.h>
#include <stdio.h>

typedef void *Device;
typedef struct {
    unsigned version;
    unsigned long long total, reserved, free, used;
} Memory;

enum { SUCCESS = 0, PROHIBITED = 2, ROOM = 64, PROCESS_BYTES = 24 };

static void *library;

static void *function(const char *name) {
    return dlsym(library, name);
}

int main(int argc, char **argv) {
    library = dlopen(argc > 1 ? argv[1] : "libnvidia-ml.so.1", RTLD_LAZY);
    if (!library)
        return 5;
    int (*init)(void) = function("nvmlInit_v2");
    int (*get_count)(unsigned *) = function("nvmlDeviceGetCount_v2");
    int (*get_handle)(unsigned, Device *) = function("nvmlDeviceGetHandleByIndex_v2");
    int (*get_memory)(Device, Memory *) = function("nvmlDeviceGetMemoryInfo_v2");
    int (*get_mode)(Device, unsigned *) = function("nvmlDeviceGetComputeMode");
    int (*get_processes)(Device, unsigned *, void *) =
        function("nvmlDeviceGetComputeRunningProcesses_v3");
    unsigned gpus = 0;
    if (init() != SUCCESS || get_count(&gpus) != SUCCESS)
        return 5;
    for (unsigned gpu = gpus; gpu-- > 0;) {
        Device device;
        Memory memory = {.version = sizeof memory | 2 << 24};
        unsigned mode, processes = ROOM;
        char buffer[ROOM * PROCESS_BYTES];
        if (get_handle(gpu, &device) == SUCCESS && get_memory(device, &memory) == SUCCESS &&
            get_mode(device, &mode) == SUCCESS &&
            get_processes(device, &processes, buffer) == SUCCESS && mode != PROHIBITED &&
            processes == 0 && memory.used < 1ull << 30) {
            printf("CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES=%u\n", gpu);
            return 0;
        }
    }
    return 4;
}
