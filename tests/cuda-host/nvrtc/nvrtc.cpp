// The stand-in's NVRTC: checks options, has the real NVRTC compile first where its path is given, then compiles for the
// host. What it hands back in place of PTX or a cubin is described in module.cpp.
#include <cstdio>
#include <cstring>
#include <dlfcn.h>
#include <string>
#include <vector>

#include "compile.hpp"
#include "options.hpp"
#include "rewrite.hpp"

using namespace cuda_host;

namespace {

enum Result : int {
  SUCCESS = 0,
  INVALID_INPUT = 3,
  INVALID_PROGRAM = 4,
  INVALID_OPTION = 5,
  COMPILATION = 6,
  NO_LOWERED_NAMES = 9,
  INTERNAL_ERROR = 11,
};

constexpr int version_major = 12, version_minor = 8;

struct Program {
  std::string source, name, log, ptx, cubin;
};

// What the options say: arguments for the host compiler, and the architecture.
struct Parsed {
  std::vector<std::string> arguments;
  int capability = 75;
  // sm_80 rather than compute_80.
  bool binary = false;
  std::string error;
};

bool starts(const std::string &s, const char *prefix) { return s.rfind(prefix, 0) == 0; }

// Options without a meaning for the host.
bool ignored(const std::string &option) {
  for (const char *prefix : {"--fmad=", "-fmad=", "--ftz=", "-ftz=", "--prec-sqrt=", "-prec-sqrt=", "--prec-div=",
                             "-prec-div=", "--use_fast_math", "-use_fast_math", "--maxrregcount=", "-maxrregcount=",
                             "--ptxas-options=", "-Xptxas=", "--generate-line-info", "-lineinfo", "--device-debug",
                             "-G", "--device-as-default-execution-space", "-default-device", "--restrict", "-restrict",
                             "--extra-device-vectorization", "-extra-device-vectorization", "--disable-warnings", "-w",
                             "--std=c++11", "--std=c++14", "--std=c++17", "-std=c++11", "-std=c++14", "-std=c++17",
                             "--Wno-", "--diag-suppress=", "-diag-suppress=", "--split-compile=", "--minimal", "-minimal"})
    if (starts(option, prefix))
      return true;
  return false;
}

Parsed parse(int count, const char *const *values) {
  Parsed p;
  for (int i = 0; i < count; ++i) {
    std::string option = values[i], value;
    size_t equals = option.find('=');
    if (equals != std::string::npos)
      value = option.substr(equals + 1);
    if (starts(option, "--gpu-architecture=") || starts(option, "-arch=")) {
      p.binary = starts(value, "sm_");
      size_t number = value.find('_');
      if (number == std::string::npos || sscanf(value.c_str() + number + 1, "%d", &p.capability) != 1)
        p.error = "nvrtc: error: invalid value for --gpu-architecture (-arch)\n";
    } else if (starts(option, "--define-macro=")) {
      p.arguments.push_back("-D" + value);
    } else if (starts(option, "--undefine-macro=")) {
      p.arguments.push_back("-U" + value);
    } else if (starts(option, "--include-path=")) {
      p.arguments.push_back("-I" + value);
    } else if (option == "-D" || option == "-I" || option == "-U") {
      if (++i < count)
        p.arguments.push_back(option + values[i]);
    } else if (starts(option, "-D") || starts(option, "-I") || starts(option, "-U")) {
      p.arguments.push_back(option);
    } else if (!ignored(option)) {
      p.error = "nvrtc: error: unrecognized option " + option + " found\n";
    }
  }
  p.arguments.push_back("-D__CUDA_ARCH__=" + std::to_string(p.capability * 10));
  return p;
}

// Compiles with the real NVRTC and the caller's options. Returns its result; its log goes to `log`.
int compile_for_real(const Program &program, int count, const char *const *values, std::string &log) {
  // A sanitizer does not allow a library to prefer its own symbols, which keeps the two NVRTCs apart.
  if (options().real_nvrtc.empty() || options().sanitizer == Sanitizer::address)
    return SUCCESS;
  void *library = dlopen(options().real_nvrtc.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_DEEPBIND);
  if (!library) {
    log = std::string("CUDA_HOST_REAL_NVRTC: ") + dlerror() + "\n";
    return INTERNAL_ERROR;
  }
  using Handle = void *;
  auto create = reinterpret_cast<int (*)(Handle *, const char *, const char *, int, const char *const *,
                                         const char *const *)>(dlsym(library, "nvrtcCreateProgram"));
  auto compile = reinterpret_cast<int (*)(Handle, int, const char *const *)>(dlsym(library, "nvrtcCompileProgram"));
  auto log_size = reinterpret_cast<int (*)(Handle, size_t *)>(dlsym(library, "nvrtcGetProgramLogSize"));
  auto get_log = reinterpret_cast<int (*)(Handle, char *)>(dlsym(library, "nvrtcGetProgramLog"));
  auto destroy = reinterpret_cast<int (*)(Handle *)>(dlsym(library, "nvrtcDestroyProgram"));
  if (!create || !compile || !log_size || !get_log || !destroy) {
    log = "CUDA_HOST_REAL_NVRTC does not name an NVRTC library\n";
    return INTERNAL_ERROR;
  }
  Handle handle = nullptr;
  if (int error = create(&handle, program.source.c_str(), program.name.c_str(), 0, nullptr, nullptr))
    return error;
  int result = compile(handle, count, values);
  size_t size = 0;
  if (log_size(handle, &size) == 0 && size > 1) {
    log.resize(size);
    get_log(handle, log.data());
    log.resize(size - 1);
  }
  destroy(&handle);
  return result;
}

Program *program_of(void *handle) { return static_cast<Program *>(handle); }

int give(const std::string &text, char *out) {
  if (text.empty())
    return INVALID_PROGRAM;
  memcpy(out, text.c_str(), text.size() + 1);
  return SUCCESS;
}

} // namespace

extern "C" {

int nvrtcVersion(int *major, int *minor) {
  *major = version_major;
  *minor = version_minor;
  return SUCCESS;
}

const char *nvrtcGetErrorString(int result) {
  constexpr const char *names[] = {"NVRTC_SUCCESS",
                                   "NVRTC_ERROR_OUT_OF_MEMORY",
                                   "NVRTC_ERROR_PROGRAM_CREATION_FAILURE",
                                   "NVRTC_ERROR_INVALID_INPUT",
                                   "NVRTC_ERROR_INVALID_PROGRAM",
                                   "NVRTC_ERROR_INVALID_OPTION",
                                   "NVRTC_ERROR_COMPILATION",
                                   "NVRTC_ERROR_BUILTIN_OPERATION_FAILURE",
                                   "NVRTC_ERROR_NO_NAME_EXPRESSIONS_AFTER_COMPILATION",
                                   "NVRTC_ERROR_NO_LOWERED_NAMES_BEFORE_COMPILATION",
                                   "NVRTC_ERROR_NAME_EXPRESSION_NOT_VALID",
                                   "NVRTC_ERROR_INTERNAL_ERROR"};
  return result >= 0 && result <= INTERNAL_ERROR ? names[result] : "NVRTC_ERROR unknown";
}

int nvrtcCreateProgram(void **out, const char *source, const char *name, int headers, const char *const *,
                       const char *const *) {
  if (!source || headers)
    return INVALID_INPUT;
  *out = new Program{source, name ? name : "default_program", "", "", ""};
  return SUCCESS;
}

int nvrtcDestroyProgram(void **handle) {
  delete program_of(*handle);
  *handle = nullptr;
  return SUCCESS;
}

int nvrtcCompileProgram(void *handle, int count, const char *const *values) {
  Program &program = *program_of(handle);
  if (int error = injected("nvrtcCompileProgram")) {
    program.log = "injected error\n";
    return error;
  }
  Parsed parsed = parse(count, values);
  program.log = parsed.error;
  if (!parsed.error.empty())
    return INVALID_OPTION;
  if (int error = compile_for_real(program, count, values, program.log))
    return error;
  Rewritten rewritten = rewrite(program.source, program.name);
  if (!rewritten.error.empty()) {
    program.log += rewritten.error;
    return COMPILATION;
  }
  Compiled compiled = compile(rewritten.text, program.name, parsed.arguments);
  program.log += compiled.log;
  if (compiled.path.empty())
    return COMPILATION;
  auto image = [&](const char *kind) {
    char code[64];
    snprintf(code, sizeof code, "\n//CODE %s %d.%d %d\n", kind, version_major, version_minor, parsed.capability);
    return "//HOSTSO " + compiled.path + code;
  };
  program.ptx = image("ptx");
  program.cubin = parsed.binary ? image("cubin") : "";
  return SUCCESS;
}

int nvrtcGetProgramLogSize(void *handle, size_t *size) {
  *size = program_of(handle)->log.size() + 1;
  return SUCCESS;
}

int nvrtcGetProgramLog(void *handle, char *log) {
  memcpy(log, program_of(handle)->log.c_str(), program_of(handle)->log.size() + 1);
  return SUCCESS;
}

int nvrtcGetPTXSize(void *handle, size_t *size) {
  *size = program_of(handle)->ptx.size() + 1;
  return program_of(handle)->ptx.empty() ? INVALID_PROGRAM : SUCCESS;
}

int nvrtcGetPTX(void *handle, char *ptx) { return give(program_of(handle)->ptx, ptx); }

// As with the real library, a size of 0 where the architecture is virtual.
int nvrtcGetCUBINSize(void *handle, size_t *size) {
  const std::string &cubin = program_of(handle)->cubin;
  *size = cubin.empty() ? 0 : cubin.size() + 1;
  return SUCCESS;
}

int nvrtcGetCUBIN(void *handle, char *cubin) { return give(program_of(handle)->cubin, cubin); }

// Kernels are extern "C": there are no names to lower.
int nvrtcAddNameExpression(void *handle, const char *expression) {
  program_of(handle)->log = std::string("the stand-in does not lower names: ") + expression + "\n";
  return INVALID_INPUT;
}
int nvrtcGetLoweredName(void *, const char *, const char **) { return NO_LOWERED_NAMES; }

int nvrtcGetNumSupportedArchs(int *count) {
  *count = 4;
  return SUCCESS;
}
int nvrtcGetSupportedArchs(int *capabilities) {
  for (int capability : {75, 80, 86, 90})
    *capabilities++ = capability;
  return SUCCESS;
}

} // extern "C"
