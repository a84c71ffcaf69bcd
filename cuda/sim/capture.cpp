// Capture of streams into graphs, and their replay.
//
// Every operation that is passed to `submit` can be captured: it becomes a node behind the front of
// its stream. An event recorded in a capture carries the front to other streams. As with the real
// driver, what a capture forbids is an error and invalidates the capture: queries of a capturing
// stream or a captured event, use of the legacy stream while a blocking stream captures, and calls
// that may synchronise (allocation, freeing, queries of events), depending on the mode of the
// capture and of the thread.
#include <atomic>
#include <set>

#include "sim.hpp"

struct CUgraphExec_st {
  std::vector<Node> nodes;
  Done last;  // launches of one graph do not overlap
};

static thread_local int thread_mode = CU_STREAM_CAPTURE_MODE_GLOBAL;

u64 thread_id() {
  static std::atomic<u64> next{1};
  static thread_local u64 id = next++;
  return id;
}

CUresult capture_node(CUstream stream, Operation operation, CUevent records, CUevent waits) {
  Capture& c = *stream->capture;
  if (c.invalid) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
  c.graph->nodes.push_back({std::move(operation), stream->front, records, waits});
  stream->front = {(int)c.graph->nodes.size() - 1};
  return CUDA_SUCCESS;
}

CUresult forbid_unsafe() {
  if (thread_mode == CU_STREAM_CAPTURE_MODE_RELAXED) return CUDA_SUCCESS;
  CUresult result = CUDA_SUCCESS;
  for (CUstream s : all_streams()) {
    if (!s->capture || s->capture->mode == CU_STREAM_CAPTURE_MODE_RELAXED) continue;
    const bool others = s->capture->mode == CU_STREAM_CAPTURE_MODE_GLOBAL &&
                        thread_mode == CU_STREAM_CAPTURE_MODE_GLOBAL;
    if (s->capture->thread != thread_id() && !others) continue;
    s->capture->invalid = true;
    result = CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  }
  return result;
}

CUresult forbid_on(CUstream stream) {
  if (stream->capture) {
    const bool was = stream->capture->invalid;
    stream->capture->invalid = true;
    return was ? CUDA_ERROR_STREAM_CAPTURE_INVALIDATED : CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  }
  CUresult result = CUDA_SUCCESS;
  if (stream->is_legacy)
    for (CUstream s : all_streams())
      if (s->capture && s->context == stream->context && !(s->flags & CU_STREAM_NON_BLOCKING)) {
        s->capture->invalid = true;
        result = CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
      }
  return result;
}

#define STREAM(name)   \
  ENTER_CONTEXT(name); \
  CUstream stream = stream_of(handle)

DRIVER_API cuThreadExchangeStreamCaptureMode(int* mode) {
  ENTER(cuThreadExchangeStreamCaptureMode);
  if (*mode < 0 || *mode > 2) return CUDA_ERROR_INVALID_VALUE;
  std::swap(*mode, thread_mode);
  return CUDA_SUCCESS;
}
DRIVER_API cuStreamBeginCapture_v2(CUstream handle, int mode) {
  STREAM(cuStreamBeginCapture_v2);
  static u64 next = 1;
  if (mode < 0 || mode > 2) return CUDA_ERROR_INVALID_VALUE;
  Lock guard(order);
  if (stream->is_legacy) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  if (stream->capture) return CUDA_ERROR_INVALID_VALUE;
  stream->capture = std::make_shared<Capture>();
  stream->capture->id = next++;
  stream->capture->mode = mode;
  stream->capture->thread = thread_id();
  stream->capture->origin = stream;
  stream->front.clear();
  return CUDA_SUCCESS;
}
DRIVER_API cuStreamEndCapture(CUstream handle, CUgraph* out) {
  STREAM(cuStreamEndCapture);
  Lock guard(order);
  *out = nullptr;
  CapturePtr capture = stream->capture;
  if (!capture) return CUDA_ERROR_INVALID_VALUE;
  if (capture->origin != stream)
    return capture->invalid = true, CUDA_ERROR_STREAM_CAPTURE_UNMATCHED;
  if (capture->mode != CU_STREAM_CAPTURE_MODE_RELAXED && capture->thread != thread_id())
    return CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD;
  std::set<int> joined;
  std::vector<int> open = stream->front;
  while (!open.empty()) {
    const int node = open.back();
    open.pop_back();
    if (!joined.insert(node).second) continue;
    for (int before : capture->graph->nodes[(size_t)node].after) open.push_back(before);
  }
  for (CUstream s : all_streams())
    if (s->capture == capture) s->capture = nullptr;
  stream->capture = nullptr;
  if (capture->invalid) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
  if (joined.size() != capture->graph->nodes.size()) return CUDA_ERROR_STREAM_CAPTURE_UNJOINED;
  *out = new CUgraph_st(*capture->graph);
  return CUDA_SUCCESS;
}
DRIVER_API cuStreamIsCapturing(CUstream handle, int* status) {
  STREAM(cuStreamIsCapturing);
  Lock guard(order);
  if (stream->is_legacy)
    if (CUresult failed = forbid_on(stream)) return failed;
  *status = !stream->capture           ? CU_STREAM_CAPTURE_STATUS_NONE
            : stream->capture->invalid ? CU_STREAM_CAPTURE_STATUS_INVALIDATED
                                       : CU_STREAM_CAPTURE_STATUS_ACTIVE;
  return CUDA_SUCCESS;
}
static CUresult capture_info(CUstream stream, int* status, uint64_t* id, CUgraph* graph,
                             const CUgraphNode** front, size_t* count) {
  static thread_local std::vector<CUgraphNode> nodes;
  Lock guard(order);
  if (stream->is_legacy)
    if (CUresult failed = forbid_on(stream)) return failed;
  *status = !stream->capture           ? CU_STREAM_CAPTURE_STATUS_NONE
            : stream->capture->invalid ? CU_STREAM_CAPTURE_STATUS_INVALIDATED
                                       : CU_STREAM_CAPTURE_STATUS_ACTIVE;
  if (*status != CU_STREAM_CAPTURE_STATUS_ACTIVE) return CUDA_SUCCESS;
  if (id) *id = stream->capture->id;
  if (graph) *graph = stream->capture->graph.get();
  nodes.clear();
  for (int node : stream->front) nodes.push_back((CUgraphNode)(uintptr_t)(node + 1));
  if (front) *front = nodes.data();
  if (count) *count = nodes.size();
  return CUDA_SUCCESS;
}
DRIVER_API cuStreamGetCaptureInfo(CUstream handle, int* status, uint64_t* id) {
  STREAM(cuStreamGetCaptureInfo);
  return capture_info(stream, status, id, nullptr, nullptr, nullptr);
}
DRIVER_API cuStreamGetCaptureInfo_v2(CUstream handle, int* status, uint64_t* id, CUgraph* graph,
                                     const CUgraphNode** front, size_t* count) {
  STREAM(cuStreamGetCaptureInfo_v2);
  return capture_info(stream, status, id, graph, front, count);
}
DRIVER_API cuStreamGetCaptureInfo_v3(CUstream handle, int* status, uint64_t* id, CUgraph* graph,
                                     const CUgraphNode** front, const void** edges, size_t* count) {
  STREAM(cuStreamGetCaptureInfo_v3);
  if (edges) *edges = nullptr;
  return capture_info(stream, status, id, graph, front, count);
}
// Flags: 0 adds to the front of the stream, 1 replaces it.
DRIVER_API cuStreamUpdateCaptureDependencies(CUstream handle, CUgraphNode* nodes, size_t count,
                                             unsigned flags) {
  STREAM(cuStreamUpdateCaptureDependencies);
  Lock guard(order);
  if (!stream->capture || flags > 1) return CUDA_ERROR_INVALID_VALUE;
  if (stream->capture->invalid) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
  std::set<int> front;
  if (!flags) front.insert(stream->front.begin(), stream->front.end());
  for (size_t i = 0; i < count; i++) {
    const size_t node = (size_t)(uintptr_t)nodes[i] - 1;
    if (node >= stream->capture->graph->nodes.size()) return CUDA_ERROR_INVALID_VALUE;
    front.insert((int)node);
  }
  stream->front.assign(front.begin(), front.end());
  return CUDA_SUCCESS;
}

DRIVER_API cuGraphGetNodes(CUgraph graph, CUgraphNode* nodes, size_t* count) {
  ENTER(cuGraphGetNodes);
  if (!nodes) return *count = graph->nodes.size(), CUDA_SUCCESS;
  for (size_t i = 0; i < *count && i < graph->nodes.size(); i++) nodes[i] = (CUgraphNode)(i + 1);
  return CUDA_SUCCESS;
}
DRIVER_API cuGraphDestroy(CUgraph graph) {
  ENTER(cuGraphDestroy);
  delete graph;
  return CUDA_SUCCESS;
}
DRIVER_API cuGraphInstantiateWithFlags(CUgraphExec* out, CUgraph graph, unsigned long long) {
  ENTER_CONTEXT(cuGraphInstantiateWithFlags);
  *out = new CUgraphExec_st{graph->nodes, nullptr};
  return CUDA_SUCCESS;
}
DRIVER_API cuGraphExecDestroy(CUgraphExec graph) {
  ENTER(cuGraphExecDestroy);
  delete graph;
  return CUDA_SUCCESS;
}
DRIVER_API cuGraphUpload(CUgraphExec, CUstream handle) {
  STREAM(cuGraphUpload);
  (void)stream;
  return CUDA_SUCCESS;
}

// Each node begins as soon as the nodes before it have finished.
static void replay(const std::vector<Node>& nodes) {
  struct State {
    std::mutex lock;
    std::condition_variable changed;
    std::vector<size_t> through;
  };
  auto state = std::make_shared<State>();
  std::vector<size_t> missing(nodes.size()), ready;
  std::vector<std::vector<size_t>> next(nodes.size());
  for (size_t i = 0; i < nodes.size(); i++) {
    missing[i] = nodes[i].after.size();
    for (int before : nodes[i].after) next[(size_t)before].push_back(i);
    if (!missing[i]) ready.push_back(i);
  }
  for (size_t left = nodes.size(); left;) {
    for (size_t i : ready) {
      Done done = std::make_shared<Completion>();
      done->then.push_back([state, i] {
        Lock guard(state->lock);
        state->through.push_back(i);
        state->changed.notify_all();
      });
      Operation operation = nodes[i].operation;
      if (operation.kind != Kind::SHORT) operation.kind = Kind::ASIDE;
      begin(operation, done);
    }
    ready.clear();
    Lock guard(state->lock);
    state->changed.wait(guard, [&] { return !state->through.empty(); });
    for (size_t i : state->through) {
      left--;
      for (size_t after : next[i])
        if (!--missing[after]) ready.push_back(after);
    }
    state->through.clear();
  }
}

DRIVER_API cuGraphLaunch(CUgraphExec graph, CUstream handle) {
  STREAM(cuGraphLaunch);
  if (!graph) return CUDA_ERROR_INVALID_HANDLE;
  auto nodes = std::make_shared<std::vector<Node>>(graph->nodes);
  Done mine = std::make_shared<Completion>(), before;
  {
    Lock guard(order);
    if (stream->capture)
      return forbid_on(stream), CUDA_ERROR_NOT_SUPPORTED;  // graphs in graphs are not simulated
    before = graph->last;
    graph->last = mine;
    // External events are waited for and recorded as by calls of this launch.
    for (Node& node : *nodes)
      if (node.waits)
        node.operation = simple(Kind::WAIT, stream->context->device,
                                [last = last_record(node.waits)] {
                                  if (last) last->wait();
                                });
    for (Node& node : *nodes)
      if (node.records) {
        Done record = std::make_shared<Completion>();
        last_record(node.records) = record;
        node.operation =
            simple(Kind::SHORT, stream->context->device, [record] { record->finish(); });
      }
  }
  Operation operation = {Kind::ASIDE, stream->context->device, [=](const Done& done) {
                           if (before) before->wait();
                           replay(*nodes);
                           mine->finish();
                           done->finish();
                         }};
  return submit(stream, std::move(operation));
}
