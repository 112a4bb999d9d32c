/* SPDX-License-Identifier: Apache-2.0
 *
 * fuzz_template.c - libFuzzer: any bytes as a chat template, rendered with a chat that
 * has every kind of value. The answer is a text or a message; whatever else comes, an
 * error thrown, a crash, more time or memory than any template may take, ends the run.
 */
#include <lauxlib.h>
#include <lua.h>
#include <lualib.h>

#include <stdint.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char *const setup =
    "package.path = './lua/?.lua;./lua/?/init.lua;' .. package.path\n"
    "local template, json = require 'perilune.jinja.template', require 'perilune.json'\n"
    "local vars = assert(json.decode [[{\"bos_token\": \"<s>\", \"n\": 3, \"x\": 1.5,\n"
    "  \"messages\": [{\"role\": \"system\", \"content\": \"a b\"},\n"
    "    {\"role\": \"user\", \"content\": \" c\\n\", \"tool_calls\": [{\"function\":\n"
    "      {\"name\": \"f\", \"arguments\": {\"k\": [1, 2.0, null, true]}}}]}],\n"
    "  \"tools\": [], \"add_generation_prompt\": true, \"none\": null}]])\n"
    "local runs = 0\n"
    "return function(source)\n"
    "  runs = runs + 1\n"
    "  if runs % 256 == 0 then collectgarbage() end\n"
    "  local t, why = template.compile(source)\n"
    "  local text = t\n"
    "  if t then text, why = t:render(vars, { now = 0 }) end\n"
    "  return text ~= nil or type(why) == 'string'\n"
    "end\n";

static lua_State *open_state(void)
{
    lua_State *L = luaL_newstate();
    luaL_openlibs(L);
    if (luaL_dostring(L, setup)) {
        fprintf(stderr, "%s\n", lua_tostring(L, -1));
        abort();
    }
    return L;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static lua_State *L;
    if (!L) L = open_state();
    lua_pushvalue(L, 1);
    lua_pushlstring(L, (const char *)data, size);
    if (lua_pcall(L, 1, 1, 0) || !lua_toboolean(L, -1)) {
        fprintf(stderr, "template: %s\n",
                lua_isstring(L, -1) ? lua_tostring(L, -1) : "no answer");
        abort();
    }
    lua_settop(L, 1);
    return 0;
}
