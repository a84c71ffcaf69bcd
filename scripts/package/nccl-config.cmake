# find_package(nccl) or find_package(NCCL): defines the targets NCCL::nccl and NCCL::nccl_static,
# the same under nccl::, and the variables that find modules set.
get_filename_component(_nccl_prefix "${CMAKE_CURRENT_LIST_DIR}/../../.." ABSOLUTE)
set(NCCL_INCLUDE_DIRS "${_nccl_prefix}/include")
set(NCCL_LIBRARIES "${_nccl_prefix}/lib/libnccl.so")

foreach(_nccl_namespace NCCL nccl)
  if(NOT TARGET ${_nccl_namespace}::nccl)
    add_library(${_nccl_namespace}::nccl SHARED IMPORTED)
    set_target_properties(${_nccl_namespace}::nccl PROPERTIES
      IMPORTED_LOCATION "${_nccl_prefix}/lib/libnccl.so.2.32.3"
      IMPORTED_SONAME libnccl.so.2
      INTERFACE_INCLUDE_DIRECTORIES "${NCCL_INCLUDE_DIRS}")
  endif()
  if(NOT TARGET ${_nccl_namespace}::nccl_static)
    add_library(${_nccl_namespace}::nccl_static STATIC IMPORTED)
    set_target_properties(${_nccl_namespace}::nccl_static PROPERTIES
      IMPORTED_LOCATION "${_nccl_prefix}/lib/libnccl_static.a"
      INTERFACE_INCLUDE_DIRECTORIES "${NCCL_INCLUDE_DIRS}"
      INTERFACE_LINK_LIBRARIES "gcc_s;pthread;m;dl")
  endif()
endforeach()
unset(_nccl_namespace)
unset(_nccl_prefix)
