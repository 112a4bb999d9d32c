/* SPDX-License-Identifier: Apache-2.0
 *
 * engine_wait.c - which sequences have waited long for their first token, and for what.
 *
 * Owns     when that is said, and how often.
 * Ignores  what is done about it.
 * Thread   any. Of a run it reads what does not change and what says "any".
 */
#include "engine_state.h"

#include <stdio.h>

#define WAIT_NS \
    ((int64_t)5 * 1000000000) /* then it is said, and again after twice that */
enum {
    MAX_SAID = 4, /* at a time; the rest is a number */
    MAX_TEXT = 400
};

typedef struct waiter {
    int32_t n_prompt, stage;
    int64_t since_ns;
    pl_buf label;
} waiter;

/* With the lock held: whether it is due, and is not so again before twice as long. */
static bool is_due(run *r, int64_t now)
{
    int64_t since = atomic_load(&r->wait_ns);
    if (r->seq->uncounted || atomic_load(&r->stage) == PL_SEQ_ANSWERING) return false;
    int64_t due = r->say_ns > since ? r->say_ns : since + WAIT_NS;
    if (now < due) return false;
    r->say_ns = since + 2 * (now - since);
    return true;
}

/* How many are due, of which the oldest MAX_SAID come out. */
static int gather(shared *s, int64_t now, waiter *out)
{
    run *oldest[MAX_SAID];
    int n = 0, kept = 0;
    for (uint32_t i = 0; i <= s->mask; i++) {
        run *r = s->index[i];
        if (!r || !is_due(r, now)) continue;
        int at = PL_MIN(n, MAX_SAID);
        n++;
        while (at > 0 && oldest[at - 1]->arrival > r->arrival) {
            if (at < MAX_SAID) oldest[at] = oldest[at - 1];
            at--;
        }
        if (at < MAX_SAID) oldest[at] = r;
    }
    for (; kept < PL_MIN(n, MAX_SAID); kept++) {
        const run *r = oldest[kept];
        out[kept] = (waiter){
            r->seq->n_given, atomic_load(&r->stage), atomic_load(&r->wait_ns), {0}};
        pl_buf_add(&out[kept].label, r->seq->label, r->seq->label_len);
    }
    return n;
}

static void say(const pl_engine *e, const pl_engine_stats *s, const waiter *w,
                int64_t now, const char *under_way)
{
    char what[MAX_TEXT];
    int blocks = (w->n_prompt + e->block_size - 1) / e->block_size;
    long long seconds = (now - w->since_ns) / 1000000000;
    if (w->stage == PL_SEQ_IN_LINE)
        snprintf(what, sizeof what,
                 "has waited %lld s in line: it needs up to %d blocks, %d of %d are in "
                 "use; running %d of at most %d, waiting %d",
                 seconds, blocks, s->blocks_used, s->blocks, s->running,
                 e->options.max_num_seqs, s->waiting);
    else if (w->stage == PL_SEQ_REMOTE)
        snprintf(what, sizeof what, "has waited %lld s for its KV from elsewhere",
                 seconds);
    else
        snprintf(what, sizeof what, "is being read: %d tokens after %lld s; running %d",
                 w->stage, seconds, s->running);
    pl_log_with(PL_LOG_INFO, &w->label, "a prompt of %d tokens %s%s", w->n_prompt, what,
                under_way);
}

/* "; this step has taken 7 s", where it has taken long. */
static void name_step(const pl_engine_stats *s, bool stepping, char *out, size_t room)
{
    int64_t took = pl_now_ns() - PL_MAX(s->last_step_ns, s->busy_since_ns);
    *out = 0;
    if (stepping && s->busy_since_ns && took >= WAIT_NS)
        snprintf(out, room, "; the step under way has taken %lld s",
                 (long long)(took / 1000000000));
}

void pl_engine_tell_waits(pl_engine *e)
{
    waiter due[MAX_SAID];
    pl_engine_stats stats;
    char under_way[MAX_TEXT / 4];
    int64_t now = pl_clock_now(e->options.clock);
    pl_engine_stats_get(e, &stats);
    pl_lock(&e->shared->lock);
    bool stepping = e->shared->stepping;
    int n = gather(e->shared, now, due);
    pl_unlock(&e->shared->lock);
    name_step(&stats, stepping, under_way, sizeof under_way);
    for (int i = 0; i < PL_MIN(n, MAX_SAID); i++) {
        say(e, &stats, &due[i], now, under_way);
        pl_buf_fini(&due[i].label);
    }
    if (n > MAX_SAID)
        pl_log(PL_LOG_INFO, "%d more sequences have waited as long", n - MAX_SAID);
}
