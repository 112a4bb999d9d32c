/* SPDX-License-Identifier: Apache-2.0
 *
 * Graphs of steps on the CUDA device: the kernels of a step of few rows are launched at
 * once.
 *
 * What differs between two such steps lies in memory that the step is told of, at the
 * same places; what shapes the launches is in pl_cu_shape, and equal shapes have equal
 * graphs. A shape is captured when it comes for the second time, one for each number of
 * rows and flight: context grows by a split in many steps, and a graph costs less than
 * two of them.
 */
#include "cuda_own.h"

#include <string.h>

enum {
    GRAPH_ROWS = 256 /* above, kernels take longer than their launches */
};

struct pl_cu_graph {
    pl_cu_shape shape;
    uint64_t *drawn;
    cudaGraphExec_t exec; /* NULL: the shape has come once */
};

void pl_cuda_graphs_open(pl_planned *p)
{
    p->graphs = pl_alloc(2 * GRAPH_ROWS * sizeof *p->graphs);
}

static void forget(pl_cu_graph *g)
{
    if (g->exec) cudaGraphExecDestroy(g->exec);
    *g = (pl_cu_graph){0};
}

void pl_cuda_graphs_close(pl_planned *p)
{
    for (int i = 0; p->graphs && i < 2 * GRAPH_ROWS; i++) forget(&p->graphs[i]);
    pl_free(p->graphs);
}

static pl_status launch(pl_planned *p, const pl_cu_shape *s, int32_t n, uint64_t *drawn)
{
    PL_TRY(pl_cuda_forward(p, s));
    return n ? pl_cuda_logits(p, s, 0, n, drawn) : PL_OK;
}

static pl_status capture(pl_planned *p, pl_cu_graph *g, int32_t n)
{
    cudaStream_t stream = p->cuda->stream;
    cudaGraph_t graph = NULL;
    PL_TRY(pl_cuda_failed(
        cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "graph"));
    pl_status s = launch(p, &g->shape, n, g->drawn);
    cudaError_t e = cudaStreamEndCapture(stream, &graph);
    if (s == PL_OK && !e) e = cudaGraphInstantiate(&g->exec, graph, 0);
    if (graph) cudaGraphDestroy(graph);
    return s < 0 ? s : pl_cuda_failed(e, "graph");
}

static bool is_same(const pl_cu_graph *g, const pl_cu_shape *s, const uint64_t *drawn)
{
    return g->drawn == drawn && memcmp(&g->shape, s, sizeof *s) == 0;
}

pl_status pl_cuda_kernels(pl_planned *p, const pl_cu_shape *s, int32_t n, uint64_t *drawn)
{
    if (s->decodes && n == s->n_draws) return pl_cuda_decode_step(p, s, drawn);
    bool fits =
        !p->cuda->eager && s->n_rows <= GRAPH_ROWS && s->n_many == 0 && n == s->n_draws;
    if (!fits) return launch(p, s, n, drawn);
    int flight = drawn == p->flights[1].drawn;
    pl_cu_graph *g = &p->graphs[flight * GRAPH_ROWS + s->n_rows - 1];
    if (!is_same(g, s, drawn)) {
        forget(g);
        memcpy(&g->shape, s, sizeof *s); /* what lies between its fields too */
        g->drawn = drawn;
        return launch(p, s, n, drawn);
    }
    if (!g->exec) PL_TRY(capture(p, g, n));
    return pl_cuda_failed(cudaGraphLaunch(g->exec, p->cuda->stream), "a step");
}
