# SPDX-License-Identifier: Apache-2.0
# Writes the text between the marks of perilune.h as C string literals, one a line.
file(READ ${IN} text)
string(REGEX MATCH "/\\* \\[cdef\\] \\*/(.*)/\\* \\[/cdef\\] \\*/" all "${text}")
set(text "${CMAKE_MATCH_1}")
if(text MATCHES "\n[ \t]*#|__attribute__|_Static_assert")
  message(FATAL_ERROR "perilune.h: what stands between the marks must be plain declarations")
endif()
string(REPLACE "\\" "\\\\" text "${text}")
string(REPLACE "\"" "\\\"" text "${text}")
string(REPLACE "\n" "\\n\"\n\"" text "${text}")
file(WRITE ${OUT} "\"${text}\"\n")
