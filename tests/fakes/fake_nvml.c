// fake_nvml.c - a libnvidia-ml.so.1 for machines without a GPU: the part of NVML that reading devices
// and their memory takes, under the names that pynvml asks for.
//
//    cc -std=c99 -shared -fPIC -o DIR/libnvidia-ml.so.1 tests/fakes/fake_nvml.c
//    LD_LIBRARY_PATH=DIR FAKE_NVML_DEVICES=2 FAKE_NVML_TOTAL=25769803776 program
//
// Its figures come from the environment, or from the file that FAKE_NVML_STATE names, whose lines NAME=VALUE count
// more. They are read anew by each call:
//
//    FAKE_NVML_DEVICES   number of devices                        (default 1; 0: there are none)
//    FAKE_NVML_TOTAL     bytes of memory of each                  (default 8 GiB)
//    FAKE_NVML_USED      bytes in use on each                     (default 0)
//    FAKE_NVML_USED_N    bytes in use on device N alone, N from 0 (default FAKE_NVML_USED)
//    FAKE_NVML_MIG_N     number of instances into which device N is divided (default 0: it is whole)
//    FAKE_NVML_PIDS      "123:4096,456:8192": compute processes of device 0 and their bytes
//    FAKE_NVML_DRIVER    version of the driver                    (default 999.0.fake)
//    FAKE_NVML_LOST      number of a device that is lost           (default: none)
//    FAKE_NVML_SILENT    1: what memory is free is not answered until it is something else
//    FAKE_NVML_PERSISTENCE 0: the driver ends with the last process (default 1)
//    FAKE_NVML_UNIFIED   1: the memory is the host's, and NVML says nothing of it
//    FAKE_NVML_INIT      what nvmlInit returns                    (default 0; 9: the driver is not loaded)
//
// Device N has the PCI address 0000:(N + 1):00.0 and the UUID "GPU-00000000-0000-0000-0000-00000000000N". Instance I of
// it has "MIG-00000000-0000-0000-000I-00000000000N", and an equal part of the memory; what is used of the device counts
// in its first instance. The memory of a device that is divided may not be asked for.
//
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
   NVML_SUCCESS                 = 0,
   NVML_ERROR_UNINITIALIZED     = 1,
   NVML_ERROR_INVALID_ARGUMENT  = 2,
   NVML_ERROR_NOT_SUPPORTED     = 3,
   NVML_ERROR_NO_PERMISSION     = 4,
   NVML_ERROR_NOT_FOUND         = 6,
   NVML_ERROR_INSUFFICIENT_SIZE = 7,
   NVML_ERROR_DRIVER_NOT_LOADED = 9,
   NVML_ERROR_GPU_IS_LOST       = 15
};

#define MOST_DEVICES   16
#define MOST_INSTANCES 7

typedef struct Device {
   unsigned index;
   int      instance; // below 0: all of it
} Device;

typedef struct Memory {
   unsigned long long total, free, used;
} Memory;

typedef struct MemoryV2 {
   unsigned           version;
   unsigned long long total, reserved, free, used;
} MemoryV2;

typedef struct PciInfo {
   char     old_bus_id[16];
   unsigned domain, bus, device, pci_device_id, pci_subsystem_id;
   char     bus_id[32];
} PciInfo;

typedef struct ProcessInfo {
   unsigned           pid;
   unsigned long long used;
   unsigned           gpu_instance, compute_instance;
} ProcessInfo;

static int    initialised;
static Device devices[MOST_DEVICES], instances[MOST_DEVICES][MOST_INSTANCES];

// Good until the next call.
static const char *told_of(const char *name) {
   static char line[4096];
   const char *state  = getenv("FAKE_NVML_STATE");
   FILE       *file   = state != NULL ? fopen(state, "r") : NULL;
   size_t      length = strlen(name);
   while (file != NULL && fgets(line, sizeof line, file) != NULL) {
      if (strncmp(line, name, length) == 0 && line[length] == '=') {
         fclose(file);
         line[strcspn(line, "\n")] = 0;
         return line + length + 1;
      }
   }
   if (file != NULL) {
      fclose(file);
   }
   return getenv(name);
}

static unsigned long long number(const char *name, unsigned long long otherwise) {
   const char *text = told_of(name);
   return text != NULL && *text != 0 ? strtoull(text, NULL, 10) : otherwise;
}

static unsigned device_count(void) {
   unsigned long long count = number("FAKE_NVML_DEVICES", 1);
   return count < MOST_DEVICES ? (unsigned)count : MOST_DEVICES;
}

static unsigned instance_count(const Device *device) {
   char name[32];
   snprintf(name, sizeof name, "FAKE_NVML_MIG_%u", device->index);
   unsigned long long count = number(name, 0);
   return count < MOST_INSTANCES ? (unsigned)count : MOST_INSTANCES;
}

static unsigned long long used_bytes(const Device *device) {
   char name[32];
   if (device->instance > 0) {
      return 0;
   }
   snprintf(name, sizeof name, "FAKE_NVML_USED_%u", device->index);
   return number(name, number("FAKE_NVML_USED", 0));
}

static unsigned long long total_bytes(void) {
   return number("FAKE_NVML_TOTAL", 8ULL << 30);
}

static int copied(const char *text, char *out, unsigned length) {
   if (strlen(text) >= length) {
      return NVML_ERROR_INSUFFICIENT_SIZE;
   }
   strcpy(out, text);
   return NVML_SUCCESS;
}

int nvmlInitWithFlags(unsigned flags);
int nvmlInitWithFlags(unsigned flags) {
   (void)flags;
   int result = (int)number("FAKE_NVML_INIT", NVML_SUCCESS);
   for (unsigned i = 0; i < MOST_DEVICES; i++) {
      devices[i].index    = i;
      devices[i].instance = -1;
      for (int j = 0; j < MOST_INSTANCES; j++) {
         instances[i][j].index    = i;
         instances[i][j].instance = j;
      }
   }
   initialised += result == NVML_SUCCESS;
   return result;
}

int nvmlInit_v2(void);
int nvmlInit_v2(void) {
   return nvmlInitWithFlags(0);
}

int nvmlShutdown(void);
int nvmlShutdown(void) {
   if (initialised == 0) {
      return NVML_ERROR_UNINITIALIZED;
   }
   initialised--;
   return NVML_SUCCESS;
}

const char *nvmlErrorString(int result);
const char *nvmlErrorString(int result) {
   switch (result) {
   case NVML_SUCCESS:
      return "Success";
   case NVML_ERROR_UNINITIALIZED:
      return "Uninitialized";
   case NVML_ERROR_INVALID_ARGUMENT:
      return "Invalid Argument";
   case NVML_ERROR_INSUFFICIENT_SIZE:
      return "Insufficient Size";
   case NVML_ERROR_DRIVER_NOT_LOADED:
      return "Driver Not Loaded";
   case NVML_ERROR_GPU_IS_LOST:
      return "GPU is lost";
   default:
      return "Unknown Error";
   }
}

int nvmlSystemGetDriverVersion(char *version, unsigned length);
int nvmlSystemGetDriverVersion(char *version, unsigned length) {
   const char *told = told_of("FAKE_NVML_DRIVER");
   return initialised == 0 ? NVML_ERROR_UNINITIALIZED : copied(told ? told : "999.0.fake", version, length);
}

int nvmlSystemGetNVMLVersion(char *version, unsigned length);
int nvmlSystemGetNVMLVersion(char *version, unsigned length) {
   return initialised == 0 ? NVML_ERROR_UNINITIALIZED : copied("13.999.0.fake", version, length);
}

int nvmlSystemGetCudaDriverVersion_v2(int *version);
int nvmlSystemGetCudaDriverVersion_v2(int *version) {
   *version = 13000;
   return NVML_SUCCESS;
}

int nvmlDeviceGetCount_v2(unsigned *count);
int nvmlDeviceGetCount_v2(unsigned *count) {
   if (initialised == 0) {
      return NVML_ERROR_UNINITIALIZED;
   }
   *count = device_count();
   return NVML_SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, Device **device);
int nvmlDeviceGetHandleByIndex_v2(unsigned index, Device **device) {
   if (initialised == 0) {
      return NVML_ERROR_UNINITIALIZED;
   }
   if (index >= device_count()) {
      return NVML_ERROR_INVALID_ARGUMENT;
   }
   if (number("FAKE_NVML_LOST", MOST_DEVICES) == index) {
      return NVML_ERROR_GPU_IS_LOST;
   }
   *device = &devices[index];
   return NVML_SUCCESS;
}

int nvmlDeviceGetIndex(const Device *device, unsigned *index);
int nvmlDeviceGetIndex(const Device *device, unsigned *index) {
   *index = device->index;
   return NVML_SUCCESS;
}

int nvmlDeviceGetName(const Device *device, char *name, unsigned length);
int nvmlDeviceGetName(const Device *device, char *name, unsigned length) {
   return copied(device->instance < 0 ? "NVIDIA Fake" : "NVIDIA Fake MIG 1g.1gb", name, length);
}

int nvmlDeviceGetUUID(const Device *device, char *uuid, unsigned length);
int nvmlDeviceGetUUID(const Device *device, char *uuid, unsigned length) {
   char text[64];
   if (device->instance < 0) {
      snprintf(text, sizeof text, "GPU-00000000-0000-0000-0000-%012u", device->index);
   } else {
      snprintf(text, sizeof text, "MIG-00000000-0000-0000-%04d-%012u", device->instance, device->index);
   }
   return copied(text, uuid, length);
}

int nvmlDeviceGetMigMode(const Device *device, unsigned *current, unsigned *pending);
int nvmlDeviceGetMigMode(const Device *device, unsigned *current, unsigned *pending) {
   *current = *pending = instance_count(device) > 0;
   return NVML_SUCCESS;
}

int nvmlDeviceGetMaxMigDeviceCount(const Device *device, unsigned *count);
int nvmlDeviceGetMaxMigDeviceCount(const Device *device, unsigned *count) {
   (void)device;
   *count = MOST_INSTANCES;
   return NVML_SUCCESS;
}

int nvmlDeviceGetMigDeviceHandleByIndex(const Device *device, unsigned index, Device **instance);
int nvmlDeviceGetMigDeviceHandleByIndex(const Device *device, unsigned index, Device **instance) {
   if (index >= instance_count(device)) {
      return NVML_ERROR_NOT_FOUND;
   }
   *instance = &instances[device->index][index];
   return NVML_SUCCESS;
}

int nvmlDeviceGetPciInfo_v3(const Device *device, PciInfo *info);
int nvmlDeviceGetPciInfo_v3(const Device *device, PciInfo *info) {
   memset(info, 0, sizeof *info);
   info->bus           = device->index + 1;
   info->pci_device_id = 0x233510de;
   snprintf(info->old_bus_id, sizeof info->old_bus_id, "0000:%02X:00.0", info->bus & 0xff);
   snprintf(info->bus_id, sizeof info->bus_id, "00000000:%02X:00.0", info->bus & 0xff);
   return NVML_SUCCESS;
}

int nvmlDeviceGetMemoryInfo(const Device *device, Memory *memory);
int nvmlDeviceGetMemoryInfo(const Device *device, Memory *memory) {
   while (number("FAKE_NVML_SILENT", 0) == 1) {
      sleep(1);
   }
   if (number("FAKE_NVML_UNIFIED", 0) == 1) {
      return NVML_ERROR_NOT_SUPPORTED;
   }
   unsigned parts = instance_count(device);
   if (parts > 0 && device->instance < 0) {
      return NVML_ERROR_NO_PERMISSION;
   }
   memory->total = total_bytes() / (parts > 0 ? parts : 1);
   memory->used  = used_bytes(device);
   memory->free  = memory->total > memory->used ? memory->total - memory->used : 0;
   return NVML_SUCCESS;
}

int nvmlDeviceGetMemoryInfo_v2(const Device *device, MemoryV2 *memory);
int nvmlDeviceGetMemoryInfo_v2(const Device *device, MemoryV2 *memory) {
   if (memory->version != 0x02000028) {
      return NVML_ERROR_INVALID_ARGUMENT;
   }
   Memory old;
   int    result = nvmlDeviceGetMemoryInfo(device, &old);
   if (result != NVML_SUCCESS) {
      return result;
   }
   memory->total    = old.total;
   memory->reserved = 0;
   memory->free     = old.free;
   memory->used     = old.used;
   return NVML_SUCCESS;
}

typedef struct Utilization {
   unsigned gpu, memory;
} Utilization;

int nvmlDeviceGetUtilizationRates(const Device *device, Utilization *utilization);
int nvmlDeviceGetUtilizationRates(const Device *device, Utilization *utilization) {
   (void)device;
   utilization->gpu    = 87;
   utilization->memory = 12;
   return NVML_SUCCESS;
}

int nvmlDeviceGetTemperature(const Device *device, int sensor, unsigned *celsius);
int nvmlDeviceGetTemperature(const Device *device, int sensor, unsigned *celsius) {
   (void)device;
   (void)sensor;
   *celsius = 61;
   return NVML_SUCCESS;
}

int nvmlDeviceGetPersistenceMode(const Device *device, unsigned *mode);
int nvmlDeviceGetPersistenceMode(const Device *device, unsigned *mode) {
   (void)device;
   *mode = number("FAKE_NVML_PERSISTENCE", 1) != 0;
   return NVML_SUCCESS;
}

int nvmlDeviceGetPowerUsage(const Device *device, unsigned *milliwatts);
int nvmlDeviceGetPowerUsage(const Device *device, unsigned *milliwatts) {
   (void)device;
   *milliwatts = 301600;
   return NVML_SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses_v3(const Device *device, unsigned *count, ProcessInfo *processes);
int nvmlDeviceGetComputeRunningProcesses_v3(const Device *device, unsigned *count, ProcessInfo *processes) {
   const char *text = device->index == 0 && device->instance <= 0 ? told_of("FAKE_NVML_PIDS") : NULL;
   unsigned    room = *count, found = 0;
   while (text != NULL && *text != 0) {
      char              *end;
      unsigned long      pid  = strtoul(text, &end, 10);
      unsigned long long used = *end == ':' ? strtoull(end + 1, &end, 10) : 0;
      if (end == text) {
         break;
      }
      if (processes != NULL && found < room) {
         ProcessInfo process = {(unsigned)pid, used, 0xFFFFFFFF, 0xFFFFFFFF};
         processes[found]    = process;
      }
      found++;
      text = *end == ',' ? end + 1 : end;
   }
   *count = found;
   return found > room ? NVML_ERROR_INSUFFICIENT_SIZE : NVML_SUCCESS;
}
