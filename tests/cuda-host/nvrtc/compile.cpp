// Compiled modules are kept in a folder, named by the hash of everything that makes them.
#include "compile.hpp"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <fstream>
#include <iterator>
#include <spawn.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "options.hpp"

extern char **environ;

namespace cuda_host {
namespace {

std::string slurp(const std::string &path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

// 128 bits of FNV-1a, as two words of 64 from different starts.
std::string hash(const std::string &text) {
  unsigned long long words[2] = {0xcbf29ce484222325u, 0x84222325cbf29ce4u};
  for (unsigned long long &word : words)
    for (unsigned char c : text)
      word = (word ^ c) * 0x100000001b3u;
  char out[33];
  snprintf(out, sizeof out, "%016llx%016llx", words[0], words[1]);
  return out;
}

// Runs the program with both outputs in a file; returns whether it succeeded.
bool execute(const std::vector<std::string> &arguments, const std::string &output) {
  std::vector<char *> argv;
  for (const std::string &a : arguments)
    argv.push_back(const_cast<char *>(a.c_str()));
  argv.push_back(nullptr);
  // A preloaded sanitizer is for kernels, not for the compiler.
  std::vector<char *> clean;
  for (char **e = environ; *e; ++e)
    if (strncmp(*e, "LD_PRELOAD=", 11) != 0)
      clean.push_back(*e);
  clean.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, 1, output.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644);
  posix_spawn_file_actions_adddup2(&actions, 1, 2);
  pid_t child;
  int failed = posix_spawnp(&child, argv[0], &actions, nullptr, argv.data(), clean.data());
  posix_spawn_file_actions_destroy(&actions);
  if (failed) {
    std::ofstream(output) << "cannot run " << argv[0] << ": " << strerror(failed) << "\n";
    return false;
  }
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

std::vector<std::string> mode_flags() {
  switch (options().sanitizer) {
  case Sanitizer::address:
    // Checks of pointers that the address sanitizer makes as well would double the time to compile.
    return {"-O1", "-g1", "-fno-omit-frame-pointer", "-fsanitize=address,undefined",
            "-fno-sanitize=pointer-overflow,null,object-size", "-fno-sanitize-recover=undefined",
            "-fsanitize-sections=cuda_shared_*"};
  case Sanitizer::thread:
    return {"-O1", "-g1", "-fsanitize=thread"};
  case Sanitizer::none:
    break;
  }
  std::vector<std::string> flags = {"-O2", "-g1"};
#ifdef __x86_64__
  // Exact operations give the same result with or without, fmaf included.
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    flags.push_back("-march=x86-64-v3");
#endif
  return flags;
}

} // namespace

Compiled compile(const std::string &text, const std::string &name, const std::vector<std::string> &arguments) {
  std::vector<std::string> command = {options().compiler, "-std=c++20", "-c", "-fPIC", "-nostdinc", "-ffp-contract=off",
                                      "-fno-strict-aliasing", "-fno-exceptions", "-fno-rtti", "-fvisibility=hidden",
                                      "-Wall", "-Wno-sign-compare", "-Wno-unknown-pragmas", "-Wno-unused",
                                      // Generated names must not hide one another: which one is meant is then chance.
                                      "-Wshadow", "-Werror=shadow"};
  for (const std::string &flag : mode_flags())
    command.push_back(flag);
  command.insert(command.end(), arguments.begin(), arguments.end());
  std::string full = "#include \"" + folder() + "/kernel/shim.hpp\"\n#line 1 \"" + name + "\"\n" + text;
  std::string key = full + slurp(folder() + "/kernel/shim.hpp") + slurp(folder() + "/kernel/abi.hpp");
  for (const std::string &part : command)
    key += '\0' + part;
  mkdir(options().modules.c_str(), 0777);
  std::string stem = options().modules + "/" + hash(key), library = stem + ".so";
  if (access(library.c_str(), R_OK) == 0)
    return {library, slurp(stem + ".log")};
  std::string work = stem + "." + std::to_string(getpid());
  std::ofstream(stem + ".cpp") << full;
  command.insert(command.end(), {stem + ".cpp", "-o", work + ".o"});
  // Linked without -fsanitize=thread: the driver library holds what such code calls.
  std::vector<std::string> link = {options().compiler, "-shared", work + ".o", "-o", work + ".so", "-L" + folder(),
                                   "-l:libcuda.so.1"};
  if (options().sanitizer == Sanitizer::address)
    link.push_back("-fsanitize=address,undefined");
  bool good = execute(command, work + ".log");
  std::string log = slurp(work + ".log");
  if (good) {
    good = execute(link, work + ".link");
    log += slurp(work + ".link");
  }
  rename((work + ".log").c_str(), (stem + ".log").c_str());
  unlink((work + ".o").c_str());
  unlink((work + ".link").c_str());
  if (!good)
    return {"", log};
  rename((work + ".so").c_str(), library.c_str());
  return {library, log};
}

} // namespace cuda_host
