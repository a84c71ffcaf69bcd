//! Errors in communicators for devices: every rank gets one, soon.

use std::sync::{Arc, Barrier};
use std::time::Duration;

use maypole_algorithms::RedOp;

use super::support::{fail, on_devices, simulator};
use crate::comm::{DeviceCall, StreamCalls, launch_calls};
use crate::config::Config;
use crate::control::DelayReason;
use crate::device::CudaStreamHandle;
use crate::error::Error;

#[test]
fn an_abort_ends_kernels_that_wait() {
    let simulator = simulator();
    let met = Arc::new(Barrier::new(3));
    let errors = on_devices(&simulator, &[0, 1, 0], &Config::default(), move |rank| {
        rank.comm.barrier().expect("a barrier");
        met.wait();
        if rank.comm.rank() == 1 {
            rank.comm.abort_handle().abort();
        }
        rank.comm.barrier()
    });
    assert_eq!(errors, vec![Err(Error::Aborted { by: 1 }); 3]);
}

#[test]
fn different_calls_are_errors() {
    let simulator = simulator();
    let errors = on_devices(&simulator, &[0, 1], &Config::default(), |rank| {
        let count = 8 + rank.comm.rank() as usize;
        let mut data = vec![1u32; count];
        rank.comm.all_reduce_in_place(&mut data, RedOp::Sum)
    });
    for error in errors {
        let Err(Error::Mismatch { ranks, what }) = &error else { panic!("{error:?}") };
        assert!(ranks.contains(&0) && ranks.contains(&1), "{error:?}");
        assert!(what.contains("all_reduce of 8") && what.contains("all_reduce of 9"), "{what}");
    }
}

#[test]
fn a_missing_rank_is_an_error_after_the_timeout_of_the_user() {
    let simulator = simulator();
    // On a busy machine the first barrier may take longer than the shorter timeout.
    let errors = [1, 20].into_iter().find_map(|seconds| {
        let timeout = Some(Duration::from_secs(seconds));
        let config = Config { timeout, ..Config::default() };
        let errors = on_devices(&simulator, &[0, 1], &config, |rank| {
            rank.comm.barrier().ok()?;
            if rank.comm.rank() == 0 {
                return rank.comm.barrier().err();
            }
            while rank.comm.async_error().is_none() {
                std::thread::sleep(Duration::from_millis(1));
            }
            rank.comm.async_error()
        });
        errors.into_iter().collect::<Option<Vec<Error>>>()
    });
    let errors = errors.expect("a barrier within the timeout, and then an error on both ranks");
    assert!(errors.iter().all(|e| matches!(e, Error::Timeout { rank: 0, .. })), "{errors:?}");
}

#[test]
fn a_missing_rank_is_reported() {
    let simulator = simulator();
    let config = Config { report: Duration::from_secs(1), ..Config::default() };
    let came = Arc::new(Barrier::new(3));
    let reasons = on_devices(&simulator, &[0, 1, 0], &config, move |rank| {
        if rank.comm.rank() == 1 {
            came.wait();
            rank.comm.barrier().expect("a barrier");
            return Vec::new();
        }
        let stream = CudaStreamHandle(rank.stream.handle());
        let (comm, calls) = (&mut rank.comm, vec![DeviceCall::Barrier]);
        // SAFETY: a barrier uses no memory of the caller.
        unsafe { launch_calls(vec![StreamCalls { comm, calls, stream }]) }.expect("to queue");
        while rank.comm.reports().is_empty() {
            std::thread::sleep(Duration::from_millis(5));
        }
        came.wait();
        rank.stream.synchronize().expect("it comes at last");
        rank.comm.reports().into_iter().map(|report| (report.chain, report.reason)).collect()
    });
    let late = (vec![1], DelayReason::NotJoined);
    assert!(reasons[0].contains(&late) && reasons[2].contains(&late), "{reasons:?}");
}

#[test]
fn a_driver_that_refuses_is_an_error_on_all_ranks() {
    // The driver's codes for: not supported, invalid value.
    for (function, error) in [(c"cuLaunchKernelEx", 801), (c"cuMemcpyAsync", 1)] {
        let simulator = simulator();
        let met = Arc::new(Barrier::new(2));
        let errors = on_devices(&simulator, &[0, 0], &Config::default(), move |rank| {
            rank.comm.barrier().expect("a barrier");
            met.wait();
            if rank.comm.rank() == 1 {
                fail(function, 1, error);
            }
            // A call that needs a program, and scratch.
            let mut data = vec![1u8; 100_000];
            rank.comm.all_reduce_in_place(&mut data, RedOp::Max)
        });
        let name = function.to_str().expect("a name");
        let told = |e: &Result<(), Error>| e.as_ref().is_err_and(|e| e.to_string().contains(name));
        assert!(errors.iter().all(told), "{errors:?}");
    }
}

#[test]
fn a_kernel_that_fails_is_an_error_on_all_ranks() {
    // The device cannot be used afterwards, so this runs in a process of its own.
    let name = "comm::tests::on_device::ends::a_failed_kernel_in_this_process";
    let test = std::env::current_exe().expect("the test's own path");
    let done = std::process::Command::new(test)
        .args(["--exact", name, "--ignored", "--nocapture"])
        .output()
        .expect("the test runs");
    let said = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success() && said.contains("1 passed"), "{said}");
}

#[test]
#[ignore = "breaks a device; run by the test above"]
fn a_failed_kernel_in_this_process() {
    let simulator = simulator();
    let met = Arc::new(Barrier::new(2));
    let errors = on_devices(&simulator, &[0, 1], &Config::default(), move |rank| {
        rank.comm.barrier().expect("a barrier");
        met.wait();
        if rank.comm.rank() == 1 {
            fail(c"kernel", 1, 719);
        }
        rank.comm.barrier().and_then(|()| rank.comm.barrier())
    });
    assert!(errors.iter().all(Result::is_err), "{errors:?}");
    assert!(errors.iter().any(|e| e.as_ref().is_err_and(|e| e.to_string().contains("719"))));
}
