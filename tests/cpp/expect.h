// What the C++ tests are written with: a check that counts its failures and says where they are.
#pragma once

#include <cstdio>
#include <string>
#include <typeinfo>

inline int failures = 0;

inline void expect(bool holds, const std::string& what) {
    if (holds) return;
    ++failures;
    std::fprintf(stderr, "FAILED: %s\n", what.c_str());
}

// f has to throw exactly E, with this message.
template <class E, class F>
void expect_error(const std::string& message, F&& f) {
    try {
        f();
        expect(false, "no error, expected: " + message);
    } catch (const E& error) {
        expect(typeid(error) == typeid(E), "another type of error: " + std::string(error.what()));
        expect(error.what() == message,
               "got:      " + std::string(error.what()) + "\n        expected: " + message);
    }
}

inline int test_result() {
    if (failures == 0) std::puts("all passed");
    return failures == 0 ? 0 : 1;
}
