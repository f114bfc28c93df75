/* The search of rolling windows, which numpy can't say without a search in the whole of a run for each event.

   models.features.search calls it; it is built if there is a compiler, and says the same as what stands there in
   numpy. It touches nothing of Python's while it works, so that other threads run beside it. */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>
#include <stdint.h>

#define NEAR 8

/* The first place in [from, stop) of ascending numbers with one greater than `bound`, or `stop`. It is mostly near: it is
   looked for one by one at first, then in steps that double. */
static Py_ssize_t first_above(const int64_t *numbers, Py_ssize_t from, Py_ssize_t stop, int64_t bound)
{
    Py_ssize_t near = stop - from > NEAR ? from + NEAR : stop;
    while (from < near && numbers[from] <= bound)
        from++;
    if (from < near)
        return from;
    Py_ssize_t low = from, high = from, step = NEAR;
    while (high < stop && numbers[high] <= bound) {
        low = high + 1;
        high = stop - high > step ? high + step : stop;
        step *= 2;
    }
    while (low < high) {
        Py_ssize_t middle = low + (high - low) / 2;
        if (numbers[middle] <= bound)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static void find(const int64_t *entity, const int64_t *time, Py_ssize_t rows, const int64_t *of,
                 const int64_t *until, Py_ssize_t asked, int64_t *found)
{
    Py_ssize_t start = 0, stop = 0, at = 0;
    for (Py_ssize_t i = 0; i < asked; i++) {
        if (i == 0 || of[i] != of[i - 1]) {
            Py_ssize_t from = i > 0 && of[i] > of[i - 1] ? stop : 0;
            start = of[i] == INT64_MIN ? 0 : first_above(entity, from, rows, of[i] - 1);
            stop = first_above(entity, start, rows, of[i]);
            at = start;
        } else if (until[i] < until[i - 1]) {
            at = start;
        }
        at = first_above(time, at, stop, until[i]);
        found[i] = at;
    }
}

static PyObject *find_rows(PyObject *module, PyObject *args)
{
    Py_buffer entity, time, of, until, found;
    (void)module;
    if (!PyArg_ParseTuple(args, "y*y*y*y*w*", &entity, &time, &of, &until, &found))
        return NULL;
    int fits = entity.len == time.len && of.len == until.len && of.len == found.len && entity.len % 8 == 0 &&
               of.len % 8 == 0;
    if (fits) {
        Py_BEGIN_ALLOW_THREADS
        find(entity.buf, time.buf, entity.len / 8, of.buf, until.buf, of.len / 8, found.buf);
        Py_END_ALLOW_THREADS
    } else {
        PyErr_SetString(PyExc_ValueError, "find_rows: columns of 64 bits are needed, two and three of one length");
    }
    PyBuffer_Release(&entity);
    PyBuffer_Release(&time);
    PyBuffer_Release(&of);
    PyBuffer_Release(&until);
    PyBuffer_Release(&found);
    if (!fits)
        return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"find_rows", find_rows, METH_VARARGS,
     "find_rows(entity, time, of, until, found): how many rows, ordered by entity and time, stand up to each time\n"
     "`until` of the entity `of`, those of lesser entities included; all int64, written to `found`."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_rows", NULL, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__rows(void) { return PyModule_Create(&module); }
