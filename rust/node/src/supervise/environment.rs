//! What a worker finds in its environment.
//!
//! Owns the list of what engines have a use for: how a device, a thread pool or an allocator behaves, where
//! libraries and temporary files lie, which language is spoken. All else stays with the node, so that a key
//! for some service, which a shell or a container holds beside them, is never within an engine's reach.
//! A list of what to leave out would have to know every secret's name.
//!
//! And which GPUs it sees: a process takes hundreds of MiB of each that is merely looked at.

use std::{env, process::Command};

use llm_node_core::memory::GpuAddress;

/// Whole names.
const NAMES: &[&str] = &[
    "ComSpec",
    "DRI_PRIME",
    "GLIBC_TUNABLES",
    "GCONV_PATH",
    "HOME",
    "LANG",
    "LANGUAGE",
    "LOCPATH",
    "LOGNAME",
    "NUMBER_OF_PROCESSORS",
    "OS",
    "PATH",
    "PATHEXT",
    // Of Python's own alone: without it some interpreters do not start.
    "PYTHONHOME",
    "SystemDrive",
    "SystemRoot",
    "TEMP",
    "TMP",
    "TMPDIR",
    "TZ",
    "TZDIR",
    "USER",
    "USERNAME",
    "USERPROFILE",
    "windir",
    "XDG_CACHE_HOME",
    "XDG_CONFIG_DIRS",
    "XDG_CONFIG_HOME",
    "XDG_DATA_DIRS",
    "XDG_DATA_HOME",
    "XDG_STATE_HOME",
];

/// Beginnings of names.
const FAMILIES: &[&str] = &[
    // Devices and their libraries.
    "ACL_",
    "AMD_",
    "ANV_",
    "ASCEND_",
    "CANN_",
    "CL_",
    "CUBLAS_",
    "CUBLASLT_",
    "CUDA_",
    "CUDNN_",
    "GPU_",
    "HABANA_",
    "HIP_",
    "HIPBLASLT_",
    "HSA_",
    "IGC_",
    "LEVEL_ZERO_",
    "MESA_",
    "METAL_",
    "MIOPEN_",
    "MTL_",
    "MUSA_",
    "NCCL_",
    "NEO",
    "NV_",
    "NVIDIA_",
    "OCL_",
    "ONEAPI_",
    "OPENCL_",
    "RADV_",
    "RCCL_",
    "ROCBLAS_",
    "ROCM_",
    "ROCR_",
    "SYCL_",
    "UR_",
    "VK_",
    "VULKAN_",
    "ZE_",
    "ZES_",
    "ZET_",
    "__GL_",
    "__NV_",
    // Arithmetic and threads on the CPU.
    "BLIS_",
    "DNNL_",
    "GGML_",
    "GOMP_",
    "GOTO_",
    "KMP_",
    "LLAMA_",
    "MKL_",
    "OMP_",
    "ONEDNN_",
    "OPENBLAS_",
    "PROCESSOR_",
    "RAYON_",
    "TBB_",
    "VECLIB_",
    // Libraries, memory, what a defect looks like.
    "ASAN_",
    "DYLD_",
    "LC_",
    "LD_",
    "LSAN_",
    "MALLOC_",
    "MIMALLOC_",
    "MSAN_",
    "NUMA_",
    "RUST_",
    "TCMALLOC_",
    "TSAN_",
    "UBSAN_",
    // Windows: where programs and their data lie.
    "ALLUSERSPROFILE",
    "APPDATA",
    "COMMONPROGRAM",
    "LOCALAPPDATA",
    "PROGRAM",
];

/// A word of a name that is a secret's, whatever family the name is of: `NVIDIA_API_KEY` opens a service.
const SECRETS: &[&str] = &[
    "APIKEY",
    "CREDENTIAL",
    "CREDENTIALS",
    "KEY",
    "KEYS",
    "PASSPHRASE",
    "PASSWD",
    "PASSWORD",
    "SECRET",
    "SECRETS",
    "TOKEN",
    "TOKENS",
];

/// Settings of the node.
const OURS: &str = "LLM_NODE_";

/// By backend, the variable that names the GPUs of a process, in an order that is that of their numbers there.
const VISIBLE: &[(&str, &str)] = &[("cuda", "CUDA_VISIBLE_DEVICES"), ("rocm", "HIP_VISIBLE_DEVICES")];
/// The number of no GPU.
const NONE: &str = "-1";

/// The GPUs that a worker sees.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Sight {
    /// None: it only looks at an engine.
    #[default]
    Nothing,
    /// Those that the node sees.
    All,
    /// Some of these, by a variable and its value.
    Some(&'static str, String),
}

impl Sight {
    /// Of one that loads a model there. Without GPUs that drivers know by name it sees all.
    pub(super) fn of(gpu_backend: &str, place: &[GpuAddress]) -> Self {
        match variable_of(gpu_backend) {
            Some(name) if !place.is_empty() && place.iter().all(GpuAddress::is_known_to_drivers) => {
                let ids: Vec<&str> = place.iter().map(|gpu| gpu.id.as_str()).collect();
                Sight::Some(name, ids.join(","))
            }
            _ => Sight::All,
        }
    }

    /// Do engines of such a backend see what they are told to?
    pub(super) fn can_be_narrowed(gpu_backend: &str) -> bool {
        variable_of(gpu_backend).is_some()
    }

    fn narrow(&self, command: &mut Command) {
        match self {
            Sight::All => {}
            Sight::Nothing => drop(command.envs(VISIBLE.iter().map(|(_, name)| (name, NONE)))),
            Sight::Some(name, ids) => drop(command.env(name, ids)),
        }
    }
}

fn variable_of(gpu_backend: &str) -> Option<&'static str> {
    VISIBLE.iter().find(|(backend, _)| *backend == gpu_backend).map(|(_, name)| *name)
}

/// Leaves to the process what is on the list and what `more` names, and adds what makes engines run well
/// where nobody chose otherwise.
pub(super) fn prepare(command: &mut Command, more: &[String], sight: &Sight) {
    command.env_clear();
    command.envs(env::vars_os().filter(|(name, _)| name.to_str().is_some_and(|name| passes(name, more))));
    // ggml would fork a debugger from its terminate handler; see the ABI's notes.
    command.env("GGML_NO_BACKTRACE", "1");
    // libgomp reads it when an engine brings it in. Its threads would spin for milliseconds at each
    // barrier, which a busy machine pays for many times over. 10000 looks take 0.1 to 0.5 ms: longer than
    // a host needs between two steps, and nothing to a worker at rest.
    if env::var_os("GOMP_SPINCOUNT").is_none() && env::var_os("OMP_WAIT_POLICY").is_none() {
        command.env("GOMP_SPINCOUNT", "10000");
    }
    // GPUs have the numbers then that NVML gives them, by which the node reads `CUDA_VISIBLE_DEVICES`.
    if env::var_os("CUDA_DEVICE_ORDER").is_none() {
        command.env("CUDA_DEVICE_ORDER", "PCI_BUS_ID");
    }
    // The C library asks for huge pages then, where the kernel gives them to who asks. A token reads all
    // weights and much of the cache, and looks up thousands of small pages for it.
    if env::var_os("GLIBC_TUNABLES").is_none() {
        command.env("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1");
    }
    sight.narrow(command);
}

fn passes(name: &str, more: &[String]) -> bool {
    // Windows knows no case in names.
    let same = |a: &str, b: &str| if cfg!(windows) { a.eq_ignore_ascii_case(b) } else { a == b };
    let begins = |family: &&str| name.get(..family.len()).is_some_and(|beginning| same(beginning, family));
    if begins(&OURS) {
        return false;
    }
    let secret =
        || name.split('_').any(|word| SECRETS.iter().any(|secret| word.eq_ignore_ascii_case(secret)));
    more.iter().any(|wanted| same(wanted, name))
        || NAMES.iter().any(|known| same(known, name))
        || (FAMILIES.iter().any(begins) && !secret())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_engine_has_a_use_for_passes() {
        for name in [
            "PATH",
            "HOME",
            "TMPDIR",
            "LD_LIBRARY_PATH",
            "LC_ALL",
            "CUDA_VISIBLE_DEVICES",
            "NVIDIA_VISIBLE_DEVICES",
            "GGML_CUDA_ENABLE_UNIFIED_MEMORY",
            "OMP_NUM_THREADS",
            "MALLOC_ARENA_MAX",
            "VK_ICD_FILENAMES",
            "ROCR_VISIBLE_DEVICES",
            "XDG_CACHE_HOME",
            "PYTHONHOME",
        ] {
            assert!(passes(name, &[]), "{name}");
        }
    }

    #[test]
    fn a_worker_sees_the_gpus_that_it_loads_on() {
        let gpu = |id: &str| GpuAddress { id: id.to_owned(), ..GpuAddress::default() };
        let ids = |names: &[&str]| names.iter().map(|id| gpu(id)).collect::<Vec<_>>();
        let seen = |variable, ids: &str| Sight::Some(variable, ids.to_owned());
        for (backend, place, sight) in [
            ("cuda", ids(&["GPU-a"]), seen("CUDA_VISIBLE_DEVICES", "GPU-a")),
            ("cuda", ids(&["GPU-a", "GPU-b"]), seen("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b")),
            ("cuda", ids(&["MIG-a"]), seen("CUDA_VISIBLE_DEVICES", "MIG-a")),
            ("rocm", ids(&["GPU-a"]), seen("HIP_VISIBLE_DEVICES", "GPU-a")),
            // NVML does not say what they are called.
            ("cuda", ids(&["0000:01:00.0"]), Sight::All),
            ("cuda", Vec::new(), Sight::All),
            ("vulkan", ids(&["GPU-a"]), Sight::All),
            ("cpu", Vec::new(), Sight::All),
        ] {
            assert_eq!(Sight::of(backend, &place), sight, "{backend} {place:?}");
        }
        let mut command = Command::new("engine");
        prepare(&mut command, &[], &Sight::Nothing);
        for variable in ["CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"] {
            let value = command.get_envs().find(|(name, _)| *name == variable).and_then(|(_, value)| value);
            assert_eq!(value, Some(NONE.as_ref()));
        }
    }

    #[test]
    fn all_else_stays_with_the_node() {
        for name in [
            "HF_TOKEN",
            "OPENAI_API_KEY",
            "AWS_SECRET_ACCESS_KEY",
            "AWS_PROFILE",
            "GITHUB_TOKEN",
            "NVIDIA_API_KEY",
            "LLAMA_HF_TOKEN",
            "VK_PASSWORD",
            "SSH_AUTH_SOCK",
            "DBUS_SESSION_BUS_ADDRESS",
            "KUBERNETES_SERVICE_HOST",
            "HTTPS_PROXY",
            "https_proxy",
            "DATABASE_URL",
            "PYTHONPATH",
            "PYTHONSTARTUP",
            "XDG_RUNTIME_DIR",
            "LLM_NODE_PORT",
            "PATHS",
            "",
        ] {
            assert!(!passes(name, &[]), "{name}");
        }
    }

    #[test]
    fn what_somebody_names_passes_but_for_our_own() {
        let more = ["HF_TOKEN".to_owned(), "LLM_NODE_PORT".to_owned()];
        assert!(passes("HF_TOKEN", &more));
        assert!(!passes("HF_TOKENS", &more));
        assert!(!passes("LLM_NODE_PORT", &more));
    }
}
