//! Tests with a driver that is missing or lacks functions.

use std::fs;
use std::path::Path;

use maypole::{Communicator, UniqueId};

use crate::failures::{PATIENCE, said};
use crate::simulator::{folder, play_for};

/// Without these functions everything works in another way.
const OPTIONAL: [&str; 7] = [
    "cuFuncGetAttribute",
    "cuLaunchKernelEx",
    "cuStreamGetId",
    "cuStreamWaitValue64_v2",
    "cuStreamWriteValue64_v2",
    "cuDeviceGetUuid_v2",
    "cuIpcGetMemHandle",
];

/// The functions that the library uses, from the lines of its table.
fn functions() -> Vec<&'static str> {
    let table = include_str!("../../cuda/src/driver/functions.rs");
    let names = table.lines().filter_map(|line| line.strip_prefix("    cu")?.split_once('('));
    let place = |name: &str| table.find(&format!("    cu{name}(")).expect("it was there") + 4;
    names.map(|(name, _)| &table[place(name)..place(name) + 2 + name.len()]).collect()
}

/// A folder with a simulated driver that lacks a function, because its name is changed.
pub(crate) fn without(name: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let mut library =
        fs::read(Path::new(self::folder()).join("libcuda.so.1")).expect("it is built");
    let wanted = [b"\0", name.as_bytes(), b"\0"].concat();
    let places: Vec<usize> = (0..library.len() - wanted.len())
        .filter(|at| library[*at..].starts_with(&wanted))
        .collect();
    assert!(!places.is_empty(), "the simulator has {name}");
    places.iter().for_each(|at| library[at + 1] = b'X');
    fs::write(folder.path().join("libcuda.so.1"), library).expect("to write");
    let kernels = Path::new(self::folder()).join("kernels.so");
    std::os::unix::fs::symlink(kernels, folder.path().join("kernels.so")).expect("a link");
    folder
}

#[test]
fn without_any_one_function_there_is_another_way_or_an_error_that_names_it() {
    let mut errors = 0;
    for name in functions() {
        let folder = without(name);
        let path = folder.path().to_str().expect("text");
        let ending = play_for(PATIENCE, path, "failing", &[]);
        assert!(!ending.hung(), "without {name} it hangs:\n{}", ending.said);
        assert!(ending.status.success(), "without {name}: {}\n{}", ending.status, ending.said);
        let said = said(&ending.said);
        let all_right = said == ["right", "right"];
        errors += usize::from(!all_right);
        let told = said.iter().any(|said| said.contains(&format!("has no function {name}")));
        assert!(all_right || told, "without {name}: {said:?}");
        assert!(all_right || !OPTIONAL.contains(&name), "without {name}: {said:?}");
    }
    assert!(errors > 10, "{errors} functions are needed");
}

#[test]
fn without_a_driver_there_are_no_devices_and_hosts_work() {
    assert_eq!(maypole::device::count(), Ok(0));
    assert_eq!(maypole::device::current(), None);
    let id = UniqueId::create().expect("a unique id");
    let error = Communicator::builder(&id).rank(0, 1).device(0).build().err();
    let error = error.expect("there is no device").to_string();
    assert!(error.contains("CUDA device 0: this process sees no CUDA device"), "{error}");
    let id = UniqueId::create().expect("a unique id");
    let mut comm = Communicator::new(&id, 0, 1).expect("a communicator of the host");
    assert_eq!(comm.device(), None);
    comm.barrier().expect("a barrier");
}
