std = "luajit"
max_line_length = 90
files["tests"] = { std = "+busted" }
files["recipes"] = { std = "luajit" }
files["core/main.lua"] = { globals = { "arg" } }
