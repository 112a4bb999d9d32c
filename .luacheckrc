std = "luajit"
max_line_length = 90
exclude_files = { "build*" }
files["tests"] = { std = "+busted" }
