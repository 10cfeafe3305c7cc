# Message packages that were built elsewhere (as the ROS 2 wheels are) name include directories of the machine they were
# built on in their imported targets, and CMake refuses to generate for a target that includes a missing directory.

# Take the directories that do not exist here out of every imported target found so far.
function(clean_include_directories)
  get_directory_property(targets IMPORTED_TARGETS)
  foreach(target IN LISTS targets)
    get_target_property(directories ${target} INTERFACE_INCLUDE_DIRECTORIES)
    if(NOT directories)
      continue()
    endif()
    set(kept ${directories})
    foreach(directory IN LISTS directories)
      if(IS_ABSOLUTE "${directory}" AND NOT EXISTS "${directory}")
        list(REMOVE_ITEM kept "${directory}")
        message(STATUS "${target}: left out ${directory}, which does not exist")
      endif()
    endforeach()
    set_target_properties(${target} PROPERTIES INTERFACE_INCLUDE_DIRECTORIES "${kept}")
  endforeach()
endfunction()
