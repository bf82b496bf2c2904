# The CMake package: find_package(fastnorm) gives fastnorm::fastnorm.
include(CMakePackageConfigHelpers)

install(TARGETS fastnorm EXPORT fastnormTargets ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(DIRECTORY ${PROJECT_SOURCE_DIR}/cpp/include/fastnorm
        DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(EXPORT fastnormTargets NAMESPACE fastnorm::
        DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/fastnorm)

configure_package_config_file(
    ${PROJECT_SOURCE_DIR}/cpp/fastnormConfig.cmake.in
    ${PROJECT_BINARY_DIR}/fastnormConfig.cmake
    INSTALL_DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/fastnorm)
write_basic_package_version_file(
    ${PROJECT_BINARY_DIR}/fastnormConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/fastnormConfig.cmake
              ${PROJECT_BINARY_DIR}/fastnormConfigVersion.cmake
        DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/fastnorm)
