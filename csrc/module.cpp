// The pybind11 module smartcs._C: how this extension was built. Free of torch symbols, so that it can be
// asked before anything compiled against torch is loaded (smartcs/_extension.py).
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <sstream>
#include <string>
#include <vector>

namespace py = pybind11;

namespace {

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::istringstream stream(text);
  for (std::string part; std::getline(stream, part, separator);) parts.push_back(part);
  return parts;
}

py::object text_or_none(const std::string& text) {
  return text.empty() ? py::object(py::none()) : py::object(py::str(text));
}

py::dict build_facts() {
  py::dict facts;
  facts["torch"] = SMARTCS_FACT_TORCH;
  facts["compiler"] = SMARTCS_FACT_COMPILER;
  facts["build_type"] = SMARTCS_FACT_BUILD_TYPE;
  facts["cxx_standard"] = __cplusplus;
  facts["instruction_sets"] = split(SMARTCS_FACT_INSTRUCTION_SETS, ',');
  facts["threads"] = SMARTCS_FACT_THREADS;
  facts["cuda"] = text_or_none(SMARTCS_FACT_CUDA);
  facts["no_cuda_reason"] = text_or_none(SMARTCS_FACT_NO_CUDA_REASON);
  facts["git_commit"] = SMARTCS_FACT_GIT_COMMIT;
  return facts;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "How the compiled extension of smartcs was built.";
  m.def("build_facts", &build_facts,
        "Returns a dict: torch (version compiled against), compiler, build_type, cxx_standard, "
        "instruction_sets,\n"
        "threads, cuda (version or None), no_cuda_reason (or None) and git_commit ('unknown' outside a "
        "checkout).");
}
