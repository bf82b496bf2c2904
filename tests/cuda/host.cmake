# The CUDA kernels compiled for the CPU, for the tests: see block_host.h.
set(FASTNORM_ON_HOST ${FASTNORM_CUDA_KERNELS} ${FASTNORM_CUDA_SOURCES})
add_library(fastnorm_cuda_on_host OBJECT ${FASTNORM_ON_HOST}
    tests/cuda/fibres.cpp tests/cuda/machine_host.cpp)
target_link_libraries(fastnorm_cuda_on_host PRIVATE fastnorm_options)
target_include_directories(fastnorm_cuda_on_host PRIVATE tests/cuda)
target_compile_definitions(fastnorm_cuda_on_host PRIVATE FASTNORM_BLOCK_HEADER="block_host.h")
set_source_files_properties(${FASTNORM_CUDA_KERNELS} PROPERTIES LANGUAGE CXX COMPILE_OPTIONS "-xc++")
# A multiply-add as one instruction: else it is a call, and there is one for every element.
include(CheckCXXCompilerFlag)
check_cxx_compiler_flag(-march=native FASTNORM_HAVE_MARCH_NATIVE)
target_compile_options(fastnorm_cuda_on_host PRIVATE -O1 -Wno-unknown-pragmas
    $<$<BOOL:${FASTNORM_HAVE_MARCH_NATIVE}>:-march=native>)
target_sources(fastnorm PRIVATE $<TARGET_OBJECTS:fastnorm_cuda_on_host>)


if(FASTNORM_BUILD_TESTS)
  enable_testing()
  add_executable(block_host_test tests/cuda/block_host_test.cpp)
  target_link_libraries(block_host_test PRIVATE fastnorm fastnorm_options)
  target_include_directories(block_host_test PRIVATE tests/cuda)
  target_compile_definitions(block_host_test PRIVATE FASTNORM_BLOCK_HEADER="block_host.h")
  add_test(NAME block_host_test COMMAND block_host_test)
  foreach(test device_api_test device_norms_test)
    add_executable(${test} tests/cuda/${test}.cpp)
    target_link_libraries(${test} PRIVATE fastnorm fastnorm_options)
    add_test(NAME ${test} COMMAND ${test})
  endforeach()
endif()
