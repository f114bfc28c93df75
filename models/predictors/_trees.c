/* Sums of the leaves of boosted trees, row by row, tree after tree.

   models.predictors.trees calls it and says what the arrays are; it is built if there is a compiler. A tree is whole, all
   of its leaves at one depth: node i has the children 2i + 1 and 2i + 2, so that no place is followed that could lead
   out of it. Of 64 rows one level is gone down at a time, which a processor does side by side. It touches nothing of
   Python's while it works. */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>
#include <stdint.h>

#define BLOCK 64
#define DEEPEST 16

/* A row goes left if its value of the feature is below; one without a value if the last bit is set. */
typedef struct {
    float below;
    uint32_t feature_and_missing_left;
} Node;

static void add_tree(const float *values, int rows, int columns, const Node *nodes, int depth, const float *leaves,
                     int any_missing, float *sums)
{
    uint32_t at[BLOCK] = {0}, inner = (1u << depth) - 1;
    for (int level = 0; level < depth; level++) {
        for (int row = 0; row < rows; row++) {
            Node node = nodes[at[row]];
            float value = values[row * columns + (node.feature_and_missing_left >> 1)];
            uint32_t left = value < node.below;
            if (any_missing)
                left |= (value != value) & node.feature_and_missing_left & 1;
            at[row] = 2 * at[row] + 2 - left;
        }
    }
    for (int row = 0; row < rows; row++)
        sums[row] += leaves[at[row] - inner];
}

static void add_all(const float *values, Py_ssize_t rows, int columns, const Node *nodes, int depth,
                    const float *leaves, Py_ssize_t trees, float *sums)
{
    Py_ssize_t of_tree = ((Py_ssize_t)1 << depth) - 1;
    for (Py_ssize_t row = 0; row < rows; row += BLOCK) {
        const float *block = values + row * columns;
        int here = rows - row < BLOCK ? (int)(rows - row) : BLOCK, any_missing = 0;
        for (Py_ssize_t i = 0; i < (Py_ssize_t)here * columns; i++)
            any_missing |= block[i] != block[i];
        for (Py_ssize_t tree = 0; tree < trees; tree++)
            add_tree(block, here, columns, nodes + tree * of_tree, depth, leaves + tree * (of_tree + 1), any_missing,
                     sums + row);
    }
}

static PyObject *add_leaves(PyObject *module, PyObject *args)
{
    Py_buffer values, nodes, leaves, sums;
    int depth;
    (void)module;
    if (!PyArg_ParseTuple(args, "y*y*iy*w*", &values, &nodes, &depth, &leaves, &sums))
        return NULL;
    Py_ssize_t rows = sums.len / 4, columns = rows ? values.len / 4 / rows : 0;
    int fits = depth >= 0 && depth <= DEEPEST && columns <= INT32_MAX / BLOCK &&
               values.len == rows * columns * 4 && sums.len % 4 == 0;
    if (fits) {
        Py_ssize_t of_tree = ((Py_ssize_t)1 << depth) - 1, trees = leaves.len / 4 / (of_tree + 1);
        fits = leaves.len == trees * (of_tree + 1) * 4 && nodes.len == trees * of_tree * (Py_ssize_t)sizeof(Node);
        for (Py_ssize_t i = 0; fits && i < trees * of_tree; i++)
            fits = ((const Node *)nodes.buf)[i].feature_and_missing_left >> 1 < columns || !rows;
        if (fits) {
            Py_BEGIN_ALLOW_THREADS
            add_all(values.buf, rows, (int)columns, nodes.buf, depth, leaves.buf, trees, sums.buf);
            Py_END_ALLOW_THREADS
        }
    }
    if (!fits)
        PyErr_SetString(PyExc_ValueError, "add_leaves: rows, trees and sums do not fit one another");
    PyBuffer_Release(&values);
    PyBuffer_Release(&nodes);
    PyBuffer_Release(&leaves);
    PyBuffer_Release(&sums);
    if (!fits)
        return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"add_leaves", add_leaves, METH_VARARGS,
     "add_leaves(values, nodes, depth, leaves, sums): add to sums, float32[n], the leaf of each tree that a row of\n"
     "values, float32[n, k], comes to; nodes are NODE[trees, 2**depth - 1] and leaves float32[trees, 2**depth]."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_trees", NULL, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__trees(void) { return PyModule_Create(&module); }
