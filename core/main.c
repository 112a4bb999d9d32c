/* SPDX-License-Identifier: Apache-2.0
 *
 * main.c - a LuaJIT host and nothing else; the only file that knows lua.h.
 *
 *   perilune WORD ...          runs lua/perilune/tools/cli.lua with the words
 *   perilune lua FILE ...      runs a Lua file in this host (the tests do)
 *
 * Lua gets one module from here, `perilune.host`: `root`, the folder that holds lua/ and
 * recipes/; and spawn(module, address), a thread with a lua_State of its own that
 * requires the module and calls what it returns with the address; join(seconds), which
 * waits so long for all of them and says whether they ended; leave(code), which ends the
 * process though they have not.
 */
#define _GNU_SOURCE
#include "base.h"

#include <lauxlib.h>
#include <lua.h>
#include <lualib.h>

#include <limits.h>
#include <locale.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum {
    MAX_THREADS = 64
};

typedef struct thread {
    pthread_t id;
    char module[128];
    double address;
} thread;

static char root[PATH_MAX];
static thread threads[MAX_THREADS];
static int n_threads;

static int traceback(lua_State *L)
{
    const char *text = lua_tostring(L, 1);
    luaL_traceback(L, L, text ? text : "(error object is not a string)", 1);
    return 1;
}

static lua_State *open_state(void);

static void *run_thread(void *arg)
{
    thread *t = arg;
    pl_thread_begin(PL_THREAD_POOL, "pl-pool/%d", (int)(t - threads));
    lua_State *L = open_state();
    lua_pushcfunction(L, traceback);
    lua_getglobal(L, "require");
    lua_pushstring(L, t->module);
    int bad = lua_pcall(L, 1, 1, 1);
    if (!bad) {
        lua_pushnumber(L, t->address);
        bad = lua_pcall(L, 1, 0, 1);
    }
    if (bad) fprintf(stderr, "perilune: thread %s: %s\n", t->module, lua_tostring(L, -1));
    lua_close(L);
    return NULL;
}

static int spawn(lua_State *L)
{
    const char *module = luaL_checkstring(L, 1);
    double address = luaL_checknumber(L, 2);
    if (n_threads == MAX_THREADS) return luaL_error(L, "too many threads");
    thread *t = &threads[n_threads];
    snprintf(t->module, sizeof t->module, "%s", module);
    t->address = address;
    if (pthread_create(&t->id, NULL, run_thread, t))
        return luaL_error(L, "no thread to be had");
    n_threads++;
    return 0;
}

static bool join_all(int seconds)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += seconds;
    while (n_threads && !pthread_timedjoin_np(threads[n_threads - 1].id, NULL, &until))
        n_threads--;
    return n_threads == 0;
}

static int join(lua_State *L)
{
    lua_pushboolean(L, join_all((int)luaL_checkinteger(L, 1)));
    return 1;
}

static int leave(lua_State *L)
{
    int code = (int)luaL_checkinteger(L, 1);
    fflush(NULL);
    _exit(code);
}

static int open_host(lua_State *L)
{
    static const luaL_Reg functions[] = {
        {"spawn", spawn}, {"join", join}, {"leave", leave}, {NULL, NULL}};
    lua_newtable(L);
    luaL_register(L, NULL, functions);
    lua_pushstring(L, root);
    lua_setfield(L, -2, "root");
    return 1;
}

static lua_State *open_state(void)
{
    lua_State *L = luaL_newstate();
    if (!L) abort();
    luaL_openlibs(L);
    lua_getglobal(L, "package");
    lua_getfield(L, -1, "preload");
    lua_pushcfunction(L, open_host);
    lua_setfield(L, -2, "perilune.host");
    lua_getfield(L, -2, "path");
    lua_pushfstring(L, "%s/lua/?.lua;%s/lua/?/init.lua;%s", root, root,
                    lua_tostring(L, -1));
    lua_setfield(L, -4, "path");
    lua_settop(L, 0);
    return L;
}

/* The folder with lua/perilune in it: above the program, or where it was installed. */
static void find_root(void)
{
    static const char *const places[] = {"/..", "/../share/perilune"};
    char exe[PATH_MAX - 64], place[PATH_MAX], probe[PATH_MAX + 64];
    ssize_t n = readlink("/proc/self/exe", exe, sizeof exe - 1);
    exe[n < 0 ? 0 : n] = 0;
    char *slash = strrchr(exe, '/');
    if (slash) *slash = 0;
    for (size_t i = 0; i < sizeof places / sizeof places[0]; i++) {
        snprintf(place, sizeof place, "%s%s", exe, places[i]);
        snprintf(probe, sizeof probe, "%s/lua/perilune/ffi.lua", place);
        if (access(probe, R_OK) == 0 && realpath(place, root)) return;
    }
    fprintf(stderr, "perilune: no lua/perilune near %s\n", exe);
    exit(70);
}

static void set_arg(lua_State *L, int argc, char **argv, int script)
{
    lua_createtable(L, argc, 0);
    for (int i = 0; i < argc; i++) {
        lua_pushstring(L, argv[i]);
        lua_rawseti(L, -2, i - script);
    }
    lua_setglobal(L, "arg");
}

int main(int argc, char **argv)
{
    setlocale(LC_CTYPE, "C.UTF-8");
    find_root();
    int is_file = argc > 2 && strcmp(argv[1], "lua") == 0;
    lua_State *L = open_state();
    set_arg(L, argc, argv, is_file ? 2 : 0);
    lua_pushcfunction(L, traceback);
    int bad;
    if (is_file) {
        bad = luaL_loadfile(L, argv[2]);
    } else {
        lua_getglobal(L, "require");
        lua_pushstring(L, "perilune.tools.cli");
        bad = lua_pcall(L, 1, 1, 1);
    }
    for (int i = is_file ? 3 : 1; !bad && i < argc; i++) lua_pushstring(L, argv[i]);
    if (!bad) bad = lua_pcall(L, argc - (is_file ? 3 : 1), 1, 1);
    if (bad) fprintf(stderr, "perilune: %s\n", lua_tostring(L, -1));
    int code = bad ? 1 : lua_isnumber(L, -1) ? (int)lua_tointeger(L, -1) : 0;
    while (!join_all(3600)) continue;
    lua_close(L);
    return code;
}
