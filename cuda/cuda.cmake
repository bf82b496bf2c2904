# The CUDA backend: object files for the library, and what they have to be linked with.
#
# FASTNORM_CUDA=HOST builds the kernels for the CPU instead, a fibre for each of their threads: the
# tests run them so where there is no GPU.

set(FASTNORM_CUDA AUTO CACHE STRING "Kernels for CUDA devices: AUTO (if there is an nvcc), ON, OFF")
set(FASTNORM_CUDA_ARCHITECTURES "80;90;100;120" CACHE STRING
    "Architectures to compile for; of the last one, PTX for those to come too")
set(FASTNORM_NVCC "" CACHE FILEPATH "nvcc, if it is none of PATH, /usr/local/cuda or PyPI's")

set(FASTNORM_CUDA_KERNELS
    cuda/elements.cu
    cuda/features.cu
    cuda/means.cu
    cuda/table_bfloat16.cu
    cuda/table_float16.cu
    cuda/table_float32.cu
    cuda/table_float64.cu)
set(FASTNORM_CUDA_SOURCES cuda/driver.cpp cuda/layout.cpp cuda/plan.cpp)

if(FASTNORM_CUDA STREQUAL "HOST")
  include(tests/cuda/host.cmake)
  return()
elseif(NOT FASTNORM_CUDA)
  target_sources(fastnorm PRIVATE cuda/unavailable.cpp)
  return()
endif()

# nvcc of the machine, or of the PyPI packages nvidia-cuda-nvcc, -nvvm, -crt, -runtime and -cccl in
# the Python that builds.
if(NOT FASTNORM_NVCC)
  find_program(FASTNORM_FOUND_NVCC nvcc HINTS ENV CUDA_HOME ENV CUDA_PATH /usr/local/cuda
               PATH_SUFFIXES bin)
  if(NOT FASTNORM_FOUND_NVCC)
    find_package(Python3 QUIET COMPONENTS Interpreter)
    if(Python3_FOUND)
      execute_process(COMMAND ${Python3_EXECUTABLE} -c
          "import nvidia, glob; print(*(g for p in nvidia.__path__ for g in glob.glob(p + '/cu*/bin/nvcc')))"
          OUTPUT_VARIABLE found ERROR_QUIET OUTPUT_STRIP_TRAILING_WHITESPACE)
      if(found)
        set(FASTNORM_FOUND_NVCC ${found} CACHE FILEPATH "" FORCE)
      endif()
    endif()
  endif()
  set(FASTNORM_NVCC_PATH ${FASTNORM_FOUND_NVCC})
else()
  set(FASTNORM_NVCC_PATH ${FASTNORM_NVCC})
endif()
# Ends this file: nobody who did not insist on CUDA has to go without all the rest.
macro(fastnorm_without_cuda reason)
  if(FASTNORM_CUDA STREQUAL "AUTO")
    message(STATUS "fastnorm: no CUDA kernels: ${reason}")
    target_sources(fastnorm PRIVATE cuda/unavailable.cpp)
    return()
  endif()
  message(FATAL_ERROR "FASTNORM_CUDA is ${FASTNORM_CUDA}, but ${reason}: install CUDA 13, or the "
      "PyPI packages nvidia-cuda-nvcc, nvidia-nvvm, nvidia-cuda-crt, nvidia-cuda-runtime and "
      "nvidia-cuda-cccl at 13.0, or set FASTNORM_NVCC (and FASTNORM_CUDART)")
endmacro()
if(NOT FASTNORM_NVCC_PATH)
  fastnorm_without_cuda("there is no nvcc")
endif()
file(REAL_PATH ${FASTNORM_NVCC_PATH} nvcc)
execute_process(COMMAND ${nvcc} --version OUTPUT_VARIABLE nvcc_version ERROR_QUIET)
string(REGEX MATCH "release ([0-9]+)" nvcc_version "${nvcc_version}")
if(NOT CMAKE_MATCH_1 OR CMAKE_MATCH_1 LESS 13)
  fastnorm_without_cuda("${nvcc} is not of CUDA 13 or later (${nvcc_version})")
endif()
get_filename_component(toolkit ${nvcc} DIRECTORY)
get_filename_component(toolkit ${toolkit} DIRECTORY)
find_library(FASTNORM_CUDART cudart_static HINTS ${toolkit} PATH_SUFFIXES lib64 lib
             targets/x86_64-linux/lib)
if(NOT FASTNORM_CUDART)
  fastnorm_without_cuda("there is no libcudart_static.a with ${nvcc}, nor where the system has libraries")
endif()
message(STATUS "fastnorm: CUDA kernels for ${FASTNORM_CUDA_ARCHITECTURES} by ${nvcc}")

set(generate)
foreach(architecture IN LISTS FASTNORM_CUDA_ARCHITECTURES)
  list(APPEND generate -gencode=arch=compute_${architecture},code=sm_${architecture})
endforeach()
list(GET FASTNORM_CUDA_ARCHITECTURES -1 newest)
list(APPEND generate -gencode=arch=compute_${newest},code=compute_${newest})

# No contraction here either: results are the same bits on every device.
set(FASTNORM_NVCC_FLAGS -std=c++20 -O3 -fmad=false --expt-relaxed-constexpr -Xfatbin=-compress-all
    -Xcompiler=-fPIC,-fvisibility=hidden,-Wall,-Wextra -Xptxas=-v
    -I${PROJECT_SOURCE_DIR} -I${PROJECT_SOURCE_DIR}/cpp -I${PROJECT_SOURCE_DIR}/cpp/include
    ${generate})
# Any change to a header compiles all of them anew: few change without the kernels.
file(GLOB headers CONFIGURE_DEPENDS cuda/*.h cpp/core/*.h cpp/include/fastnorm/*.hpp)
set(objects)
foreach(source IN LISTS FASTNORM_CUDA_KERNELS ITEMS cuda/runtime.cu)
  get_filename_component(name ${source} NAME_WE)
  set(object ${PROJECT_BINARY_DIR}/cuda/${name}.o)
  add_custom_command(OUTPUT ${object}
      # What ptxas says of registers and stacks stays beside the object: a test reads it.
      COMMAND ${CMAKE_COMMAND} -E make_directory ${PROJECT_BINARY_DIR}/cuda
      COMMAND sh -c "\"$@\" > '${object}.ptxas' 2>&1 || { cat '${object}.ptxas'; exit 1; }" sh
          ${nvcc} ${FASTNORM_NVCC_FLAGS} -c ${PROJECT_SOURCE_DIR}/${source} -o ${object}
      DEPENDS ${source} ${headers} VERBATIM COMMENT "Compiling ${source} for CUDA")
  list(APPEND objects ${object})
endforeach()
target_sources(fastnorm PRIVATE ${FASTNORM_CUDA_SOURCES} ${objects})
set_source_files_properties(${objects} PROPERTIES EXTERNAL_OBJECT ON GENERATED ON)

target_link_libraries(fastnorm
    PUBLIC $<BUILD_INTERFACE:${FASTNORM_CUDART}>
           $<INSTALL_INTERFACE:$<INSTALL_PREFIX>/${CMAKE_INSTALL_LIBDIR}/libcudart_static.a>
           pthread dl rt)
# So that a program that links the library needs no CUDA installation.
if(FASTNORM_INSTALL)
  install(FILES ${FASTNORM_CUDART} DESTINATION ${CMAKE_INSTALL_LIBDIR})
endif()
