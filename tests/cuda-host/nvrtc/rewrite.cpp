// What the shim's macros cannot say: which kernel a shared variable belongs to, dynamic shared memory, inline PTX, and
// the table of kernels. Works on tokens, so comments and strings stay as they are.
#include "rewrite.hpp"

#include <set>
#include <vector>

namespace cuda_host {
namespace {

struct Token {
  size_t begin, end;
  std::string text;
};

// An instruction of inline PTX: its text, how its operands are passed, and the shim's name for it.
struct Instruction {
  const char *text, *constraints, *name;
};

constexpr Instruction instructions[] = {
    {"cvt.rna.tf32.f32 %0, %1;", "=r,f", "cvt_tf32"},
    {"cvt.rn.bf16x2.f32 %0, %1, %2;", "=r,f,f", "cvt_bf16x2"},
    {"mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
     "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};",
     "+f,+f,+f,+f,r,r,r,r,r,r", "mma_tf32"},
    {"mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
     "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};",
     "+f,+f,+f,+f,r,r,r,r,r,r", "mma_bf16"},
};

struct Kernel {
  std::string name, bounds;
  bool shared = false;
};

bool word_character(char c) { return isalnum((unsigned char)c) || c == '_'; }

// Identifiers, numbers and single characters; strings as one token. Comments and preprocessor lines are left out.
std::vector<Token> tokens_of(const std::string &s) {
  std::vector<Token> tokens;
  bool line_start = true;
  for (size_t i = 0; i < s.size();) {
    size_t begin = i;
    if (s[i] == '\n' || isspace((unsigned char)s[i])) {
      line_start = line_start || s[i] == '\n';
      ++i;
    } else if (s.compare(i, 2, "//") == 0) {
      while (i < s.size() && s[i] != '\n')
        ++i;
    } else if (s.compare(i, 2, "/*") == 0) {
      size_t end = s.find("*/", i + 2);
      i = end == std::string::npos ? s.size() : end + 2;
    } else if (s[i] == '#' && line_start) {
      while (i < s.size() && (s[i] != '\n' || s[i - 1] == '\\'))
        ++i;
    } else {
      line_start = false;
      if (s[i] == '"' || s[i] == '\'') {
        char quote = s[i++];
        while (i < s.size() && s[i] != quote)
          i += s[i] == '\\' ? 2 : 1;
        ++i;
      } else if (word_character(s[i])) {
        while (i < s.size() && word_character(s[i]))
          ++i;
      } else {
        ++i;
      }
      tokens.push_back({begin, i, s.substr(begin, i - begin)});
    }
  }
  return tokens;
}

class Rewriter {
public:
  Rewriter(const std::string &source, const std::string &name)
      : source(source), name(name), tokens(tokens_of(source)) {}

  Rewritten run() {
    for (at = 0; at < tokens.size() && error.empty();) {
      const std::string &t = tokens[at].text;
      if (t == "__global__")
        kernel_head();
      else if (t == "__shared__")
        shared_variable();
      else if (t == "extern" && is(at + 1, "\"C\"") && is(at + 2, "__global__"))
        drop(at, at + 1);
      else if (t == "static" && is(at + 1, "__device__"))
        drop(at, at);
      else if (t == "extern" && is(at + 1, "__shared__"))
        dynamic_shared();
      else if (t == "asm" && is(at + 1, "("))
        inline_ptx();
      else {
        if (t == "{" && ++depth == body_depth && pending)
          inside = int(kernels.size()) - 1, pending = false;
        if (t == "}" && depth-- == body_depth)
          inside = -1;
        ++at;
      }
    }
    out += source.substr(copied);
    return {out + table(), error};
  }

private:
  const std::string &source, &name;
  std::vector<Token> tokens;
  size_t at = 0, copied = 0;
  int depth = 0, body_depth = -1, inside = -1;
  // A kernel's head has been read, its body not begun.
  bool pending = false, common_shared = false;
  std::vector<Kernel> kernels;
  std::string out, error;

  bool is(size_t i, const char *text) const { return i < tokens.size() && tokens[i].text == text; }

  void fail(const std::string &what) {
    size_t line = 1;
    for (size_t i = 0; at < tokens.size() && i < tokens[at].begin; ++i)
      line += source[i] == '\n';
    error = name + "(" + std::to_string(line) + "): error: " + what + "\n";
  }

  // Puts `text` in the place of tokens `first` to `last`, and goes on after them.
  void replace(size_t first, size_t last, const std::string &text) {
    out += source.substr(copied, tokens[first].begin - copied) + text;
    // Line numbers stay.
    for (size_t i = tokens[first].begin; i < tokens[last].end; ++i)
      if (source[i] == '\n')
        out += '\n';
    copied = tokens[last].end;
    at = last + 1;
  }
  void drop(size_t first, size_t last) { replace(first, last, ""); }

  // The token after the parenthesis that matches the one at `open`.
  size_t past_parentheses(size_t open) const {
    int level = 0;
    for (size_t i = open; i < tokens.size(); ++i) {
      level += is(i, "(") - is(i, ")");
      if (!level)
        return i + 1;
    }
    return tokens.size();
  }

  // `__global__ void __launch_bounds__(n) name(`, the bounds before or after `void` or absent.
  void kernel_head() {
    Kernel kernel;
    size_t i = at + 1;
    for (; i < tokens.size() && !is(i + 1, "(") ; ++i) {
    }
    if (is(i, "__launch_bounds__")) {
      size_t end = past_parentheses(i + 1);
      kernel.bounds = source.substr(tokens[i + 2].begin, tokens[end - 2].end - tokens[i + 2].begin);
      for (i = end; i < tokens.size() && !is(i + 1, "("); ++i) {
      }
    }
    if (i >= tokens.size())
      return fail("cannot read the head of this kernel");
    kernel.name = tokens[i].text;
    size_t after = past_parentheses(i + 1);
    if (is(after, "{")) {
      kernels.push_back(kernel);
      pending = true;
      body_depth = depth + 1;
    }
    at = after;
  }

  static std::string unquoted(const std::string &token) { return token.substr(1, token.size() - 2); }

  // `asm("instruction" : "=c"(result), .. : "c"(operand), ..)`.
  void inline_ptx() {
    size_t end = past_parentheses(at + 1) - 1, i = at + 2;
    std::string text, constraints, operands;
    for (; i < end && tokens[i].text[0] == '"'; ++i)
      text += unquoted(tokens[i].text);
    // Each is a string and an expression in parentheses, behind a colon or a comma.
    while (i + 2 < end && (is(i, ":") || is(i, ",")) && tokens[i + 1].text[0] == '"' && is(i + 2, "(")) {
      size_t after = past_parentheses(i + 2);
      const char *comma = operands.empty() ? "" : ",";
      constraints += comma + unquoted(tokens[i + 1].text);
      operands += comma + source.substr(tokens[i + 2].begin, tokens[after - 1].end - tokens[i + 2].begin);
      i = after;
    }
    for (const Instruction &known : instructions)
      if (i == end && text == known.text && constraints == known.constraints)
        return replace(at, end, std::string("CUDA_HOST_PTX_") + known.name + "(" + operands + ")");
    fail("unknown inline PTX: " + text + " with " + constraints);
  }

  void shared_variable() {
    bool owned = inside >= 0;
    (owned ? kernels[size_t(inside)].shared : common_shared) = true;
    replace(at, at, "CUDA_HOST_SHARED(" + (owned ? std::to_string(inside) : "common") + ")");
  }

  // `extern __shared__ [alignment] type name[];`
  void dynamic_shared() {
    if (depth == 0)
      return fail("dynamic shared memory must be declared inside the kernel");
    size_t end = at;
    while (end < tokens.size() && !is(end, ";"))
      ++end;
    if (end < at + 5 || !is(end - 1, "]") || !is(end - 2, "["))
      return fail("dynamic shared memory must be declared as `extern __shared__ type name[];`");
    std::string type;
    for (size_t i = at + 2; i < end - 3; ++i) {
      if (is(i, "__align__") || is(i, "alignas")) {
        i = past_parentheses(i + 1) - 1;
        continue;
      }
      type += tokens[i].text + " ";
    }
    replace(at, end - 1,
            type + "*" + tokens[end - 3].text + " = static_cast<" + type + "*>(cuda_host_current.dynamic_shared)");
  }

  std::string section(const std::string &owner, bool used) const {
    return used ? "__start_cuda_shared_" + owner + ", __stop_cuda_shared_" + owner : "nullptr, nullptr";
  }

  // On one line of its own file, so that messages about it cannot be taken for the kernel's.
  std::string table() const {
    std::string t = "\n#line 1 \"table of kernels\"\n", rows;
    auto declare = [&](const std::string &owner) {
      for (const char *edge : {"__start", "__stop"})
        t += std::string("extern \"C\" __attribute__((visibility(\"hidden\"))) char ") + edge + "_cuda_shared_" + owner +
             "[];\n";
    };
    if (common_shared)
      declare("common");
    for (size_t k = 0; k < kernels.size(); ++k) {
      const Kernel &kernel = kernels[k];
      std::string number = std::to_string(k), entry = "cuda_host::Entry<" + kernel.name + ">";
      if (kernel.shared)
        declare(number);
      rows += "  {\"" + kernel.name + "\", " + entry + "::run, " + entry + "::count, " + entry + "::sizes, " + entry +
              "::pointers, cuda_host::first_bound(" + kernel.bounds + "), " + section(number, kernel.shared) + ", " +
              section("common", common_shared) + "},\n";
    }
    return t + "static const cuda_host::Kernel cuda_host_kernels[] = {\n" + rows +
           "  {}\n};\nextern \"C\" __attribute__((visibility(\"default\"))) const cuda_host::Module cuda_host_module = "
           "{cuda_host::abi_version, " +
           std::to_string(kernels.size()) + ", cuda_host_kernels};\n";
  }
};

} // namespace

Rewritten rewrite(const std::string &source, const std::string &name) { return Rewriter(source, name).run(); }

} // namespace cuda_host
