# The CUDA kernels, an object library for each level (kernels/cuda/level.h), compiled for the architectures that have it:
#   X.cu, X_sm75.cu   all of CMAKE_CUDA_ARCHITECTURES
#   X_sm80.cu         those from 8.0 on
#   X_sm90.cu         9.0a alone, where 9.0 is among them; there is no PTX of 9.0a for later cards
# A level without an architecture among them is kept as PTX of its own, the cheapest form: dispatches name every level, and
# a driver that meets such a device after all compiles what it needs.
# Sets cuda_level_objects.
set(architectures_80 "")
set(architectures_90 90a-virtual)
foreach(entry ${CMAKE_CUDA_ARCHITECTURES})
  string(REGEX MATCH "^[0-9]+" number ${entry})
  if(number GREATER_EQUAL 80)
    list(APPEND architectures_80 ${entry})
  endif()
  if(number EQUAL 90 AND NOT entry MATCHES "virtual")
    set(architectures_90 90a-real)
  endif()
endforeach()
if(NOT architectures_80)
  set(architectures_80 80-virtual)
endif()

set(cuda_level_objects "")
function(add_level level architectures sources)
  if(sources)
    add_library(vitsparse_sm${level} OBJECT ${sources})
    set_target_properties(vitsparse_sm${level} PROPERTIES
      CUDA_ARCHITECTURES "${architectures}" CUDA_STANDARD 17 CUDA_VISIBILITY_PRESET hidden)
    target_compile_options(vitsparse_sm${level} PRIVATE -Xfatbin=-compress-all -Xptxas=-warn-spills,-warn-lmem-usage)
    set(cuda_level_objects ${cuda_level_objects} vitsparse_sm${level} PARENT_SCOPE)
  endif()
endfunction()
file(GLOB cuda_kernels CONFIGURE_DEPENDS kernels/cuda/*.cu)
foreach(level 80 90)
  set(kernels_${level} ${cuda_kernels})
  list(FILTER kernels_${level} INCLUDE REGEX "_sm${level}\\.cu$")
  list(FILTER cuda_kernels EXCLUDE REGEX "_sm${level}\\.cu$")
endforeach()
add_level(75 "${CMAKE_CUDA_ARCHITECTURES}" "${cuda_kernels}")
add_level(80 "${architectures_80}" "${kernels_80}")
add_level(90 "${architectures_90}" "${kernels_90}")
