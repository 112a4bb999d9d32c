std = "luajit"
max_line_length = 90
exclude_files = { "build*" }
-- Tests hold what they expect on one line.
files["tests"] = { std = "+busted", max_line_length = 110 }
