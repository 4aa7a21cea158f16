//! Captured graphs: what may be captured, when it runs, and in what order.
#![allow(unsafe_code, reason = "copies below the safe interface")]

use cudarc::driver::result::{self, event};
use cudarc::driver::sys::{CUevent_flags, CUgraphInstantiate_flags, CUstreamCaptureMode};
use cudarc::driver::{CudaGraph, DevicePtr as _};

use crate::support::cuda_host::device::{Device, config};
use crate::support::cuda_host::{Options, Streams, in_child};
use crate::{outcome, stand_in};

const CAPTURE: CUstreamCaptureMode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
const NO_FLAGS: CUgraphInstantiate_flags = CUgraphInstantiate_flags(0);

/// Captures `y += 3 x` twice, replays it three times, and returns y[0] after the capture and at the end.
fn replay((): ()) -> (f32, f32, f32) {
    let device = Device::with_case("good.cu");
    let x = device.stream.clone_htod(&[1.0f32; 64]).expect("input");
    let mut y = device.stream.alloc_zeros::<f32>(64).expect("output");
    device.stream.synchronize().expect("no error");
    device.stream.begin_capture(CAPTURE).expect("the capture begins");
    for _ in 0..2 {
        device.launch("axpy4", config(1, 32, 0), &mut y, &x).expect("a captured launch");
    }
    let graph = device.stream.end_capture(NO_FLAGS).expect("the capture ends").expect("a graph");
    let before = device.stream.clone_dtoh(&y).expect("the result")[0];
    graph.upload().expect("the graph's upload");
    for _ in 0..3 {
        graph.launch().expect("a replay");
    }
    (before, x.len() as f32, device.stream.clone_dtoh(&y).expect("the result")[0])
}

#[test]
fn graphs_run_only_when_launched() {
    for streams in [Streams::Eager, Streams::Lazy, Streams::Random(3)] {
        let options = Options { streams, ..stand_in() };
        let ran = in_child("graphs::graphs_run_only_when_launched", &options, (), replay);
        assert_eq!(ran.value, (0.0, 64.0, 18.0), "{streams:?}");
        let c = ran.counts;
        assert_eq!((c.graphs_captured, c.graphs_instantiated, c.graph_launches, c.graph_nodes_executed), (1, 1, 3, 6));
        assert_eq!((c.launches["axpy4"], c.calls("cuLaunchKernel")), (6, 2));
    }
}

/// Two streams captured into one graph: `y += 3 x` on the first, `z = y` on the second. z[0] after one replay.
fn forked((wait, join): (bool, bool)) -> Result<f32, String> {
    let device = Device::with_case("good.cu");
    let x = device.stream.clone_htod(&[1.0f32; 64]).expect("input");
    let mut y = device.stream.alloc_zeros::<f32>(64).expect("output");
    let mut z = device.stream.alloc_zeros::<f32>(64).expect("output");
    let other = device.context.new_stream().expect("a stream");
    device.context.synchronize().expect("no error");
    device.stream.begin_capture(CAPTURE).expect("the capture begins");
    // Draws the second stream into the capture, before or after the launch.
    if !wait {
        other.join(&device.stream).expect("an event");
    }
    device.launch("axpy4", config(1, 32, 0), &mut y, &x).expect("a captured launch");
    if wait {
        other.join(&device.stream).expect("an event");
    }
    other.memcpy_dtod(&y, &mut z).expect("a captured copy");
    if join {
        device.stream.join(&other).expect("an event");
    }
    let graph = device.stream.end_capture(NO_FLAGS).map_err(crate::name)?.expect("a graph");
    graph.launch().expect("a replay");
    Ok(device.stream.clone_dtoh(&z).expect("the result")[0])
}

#[test]
fn graphs_keep_the_order_of_events_and_no_other() {
    let test = "graphs::graphs_keep_the_order_of_events_and_no_other";
    let run = |seed, wait, join| {
        let options = Options { streams: Streams::Random(seed), ..stand_in() };
        in_child(test, &options, (wait, join), forked).value
    };
    assert!((0..8).all(|seed| run(seed, true, true) == Ok(3.0)));
    // Without the event either order occurs.
    let found: Vec<_> = (0..8).map(|seed| run(seed, false, true)).collect();
    assert!(found.contains(&Ok(3.0)) && found.contains(&Ok(0.0)), "{found:?}");
    assert_eq!(run(0, true, false), Err("CUDA_ERROR_STREAM_CAPTURE_UNJOINED".to_string()));
}

/// Outcomes of a call during a capture, and of the capture's end.
fn during_capture(which: String) -> Vec<String> {
    let device = Device::with_case("good.cu");
    let mut y = device.stream.alloc_zeros::<f32>(64).expect("output");
    let address = y.device_ptr(&device.stream).0;
    let before = device.stream.record_event(None).expect("an event");
    let pinned = unsafe { device.context.alloc_pinned::<f32>(64) }.expect("page-locked memory");
    let source = pinned.as_ptr().expect("no error");
    device.stream.synchronize().expect("no error");
    device.stream.begin_capture(CAPTURE).expect("the capture begins");
    let stream = device.stream.cu_stream();
    let call = match which.as_str() {
        "fill" => outcome(device.stream.memset_zeros(&mut y)),
        "page-locked copy" => {
            let source = unsafe { std::slice::from_raw_parts(source, 64) };
            outcome(unsafe { result::memcpy_htod_async(address, source, stream) })
        }
        "pageable copy" => outcome(unsafe { result::memcpy_htod_async(address, &[1.0f32; 64], stream) }),
        "synchronise" => outcome(device.stream.synchronize()),
        "synchronise all" => outcome(device.context.synchronize()),
        "synchronous copy" => outcome(unsafe { result::memcpy_htod_sync(address, &[1.0f32; 64]) }),
        "wait for an event from before" => outcome(device.stream.wait(&before)),
        "ask a captured event" => {
            let captured = event::create(CUevent_flags::CU_EVENT_DEFAULT).expect("an event");
            unsafe { event::record(captured, stream) }.expect("a captured record");
            outcome(unsafe { event::synchronize(captured) })
        }
        "allocate" => outcome(device.stream.alloc_zeros::<f32>(1)),
        other => panic!("no case {other}"),
    };
    let end = device.stream.end_capture(NO_FLAGS);
    let nodes = |g: Option<CudaGraph>| g.map_or(0, |_| 1);
    vec![call, outcome(end.map(nodes)), outcome(device.stream.synchronize())]
}

#[test]
fn calls_that_spoil_a_capture() {
    let refused = "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED";
    let spoilt = "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED";
    let cases = [
        ("fill", "ok", "ok"),
        ("page-locked copy", "ok", "ok"),
        ("pageable copy", refused, spoilt),
        ("synchronise", refused, spoilt),
        ("synchronise all", refused, spoilt),
        ("synchronous copy", refused, spoilt),
        ("wait for an event from before", "CUDA_ERROR_STREAM_CAPTURE_ISOLATION", spoilt),
        ("ask a captured event", "CUDA_ERROR_CAPTURED_EVENT", "ok"),
        ("allocate", "CUDA_ERROR_NOT_SUPPORTED", spoilt),
    ];
    for (which, call, end) in cases {
        let test = "graphs::calls_that_spoil_a_capture";
        let ran = in_child(test, &stand_in(), which.to_string(), during_capture);
        // The stream is usable afterwards.
        assert_eq!(ran.value, [call, end, "ok"], "{which}: {}", ran.output);
    }
}
