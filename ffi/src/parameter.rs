//! The parameter API: the library's settings, as they are in this process, by name. A name is that of the environment variable, with or
//! without `NCCL_`.
//!
//! A handle is the place of a setting in the table. A setting that is an integer is given by every accessor whose type it
//! fits; every setting is given as text. `ncclParamGet` writes an integer as eight bytes, else text without a zero at its end.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::sync::LazyLock;

use maypole::ResultCode;
use maypole::config::{self, SettingOrigin};

use crate::boundary::{NcclResult, answer, invalid};
use crate::export::abi;
use crate::identity::put;

/// `ncclParamHandle_t` as the client holds it: a number in the shape of a pointer.
pub(crate) type Parameter = *mut c_void;

/// A setting, as text that the client may keep.
struct Entry {
    key: CString,
    value: CString,
    integer: Option<i64>,
    origin: SettingOrigin,
}

struct Keys(Vec<*const c_char>);

// SAFETY: the pointers are to the texts of `ENTRIES`, which never change.
unsafe impl Send for Keys {}
// SAFETY: likewise.
unsafe impl Sync for Keys {}

static ENTRIES: LazyLock<Vec<Entry>> = LazyLock::new(|| {
    let text = |text: &str| CString::new(text.replace('\0', " ")).unwrap_or_default();
    let entry = |row: &config::Variable| {
        let (value, origin) = config::lookup(row.name).map_or_else(
            || (row.default.to_owned(), SettingOrigin::Default),
            |(value, origin)| (value, origin),
        );
        Entry { key: text(row.name), integer: config::integer(&value), value: text(&value), origin }
    };
    config::table().map(entry).collect()
});

static KEYS: LazyLock<Keys> =
    LazyLock::new(|| Keys(ENTRIES.iter().map(|entry| entry.key.as_ptr()).collect()));

/// # Safety
/// `key` is NULL or ends in a zero.
unsafe fn find(key: *const c_char) -> Result<usize, ResultCode> {
    if key.is_null() {
        return Err(invalid("the name of the parameter is NULL"));
    }
    // SAFETY: the caller's promise.
    let key = unsafe { CStr::from_ptr(key) }.to_string_lossy();
    let named = |entry: &Entry| {
        let name = entry.key.to_string_lossy();
        name == key || name.strip_prefix("NCCL_") == Some(&*key)
    };
    ENTRIES.iter().position(named).ok_or_else(|| {
        invalid(&format!(
            "there is no parameter {key}; ncclParamGetAllParameterKeys lists those there are"
        ))
    })
}

fn entry(parameter: Parameter) -> Result<&'static Entry, ResultCode> {
    let at = (parameter.addr() >> 4).checked_sub(1);
    let known = at.filter(|_| parameter.addr() & 0xf == 0).and_then(|at| ENTRIES.get(at));
    known.ok_or_else(|| invalid("the handle is not of a parameter; ncclParamBind gives one"))
}

fn number<T: TryFrom<i64>>(parameter: Parameter, out: *mut T) -> NcclResult {
    answer(|| {
        put("ncclParamGet*", out, || {
            let Entry { key, value, integer, .. } = entry(parameter)?;
            integer.and_then(|integer| T::try_from(integer).ok()).ok_or_else(|| {
                invalid(&format!(
                    "{} is {}, which the type does not hold",
                    key.display(),
                    value.display()
                ))
            })
        })
    })
}

trait Display {
    fn display(&self) -> std::borrow::Cow<'_, str>;
}

impl Display for CString {
    fn display(&self) -> std::borrow::Cow<'_, str> {
        self.to_string_lossy()
    }
}

macro_rules! accessors {
    ($($name:ident $type:ty),*) => {
        abi! {$(
            /// The integer, if it fits the type.
            fn $name(parameter: Parameter, out: *mut $type) -> NcclResult {
                number(parameter, out)
            }
        )*}
    };
}

accessors!(
    ncclParamGetI8 i8, ncclParamGetI16 i16, ncclParamGetI32 i32, ncclParamGetI64 i64,
    ncclParamGetU8 u8, ncclParamGetU16 u16, ncclParamGetU32 u32, ncclParamGetU64 u64
);

abi! {
    /// `ncclParamBind`
    fn ncclParamBind(out: *mut Parameter, key: *const c_char) -> NcclResult {
        answer(|| {
            put("ncclParamBind", out, || {
                // SAFETY: the caller's promise.
                let at = unsafe { find(key) }?;
                Ok(std::ptr::without_provenance_mut((at + 1) << 4))
            })
        })
    }

    /// `ncclParamGetStr`
    fn ncclParamGetStr(parameter: Parameter, out: *mut *const c_char) -> NcclResult {
        answer(|| put("ncclParamGetStr", out, || Ok(entry(parameter)?.value.as_ptr())))
    }

    /// `ncclParamGet`
    fn ncclParamGet(parameter: Parameter, out: *mut c_void, room: c_int, len: *mut c_int) -> NcclResult {
        answer(|| {
            let Entry { key, value, integer, .. } = entry(parameter)?;
            if out.is_null() || len.is_null() {
                return Err(invalid("ncclParamGet: the place for the result is NULL"));
            }
            let integer = integer.map(i64::to_ne_bytes);
            let bytes = integer.as_ref().map_or(value.as_bytes(), |bytes| &bytes[..]);
            // SAFETY: the caller's promise.
            unsafe { len.write(bytes.len() as c_int) };
            if usize::try_from(room).is_ok_and(|room| room >= bytes.len()) {
                // SAFETY: the caller's promise.
                unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), out.cast(), bytes.len()) };
                return Ok(());
            }
            Err(invalid(&format!("ncclParamGet: {} needs {} bytes, there are {room}", key.display(), bytes.len())))
        })
    }

    /// `ncclParamGetParameter`
    fn ncclParamGetParameter(key: *const c_char, value: *mut *const c_char, len: *mut c_int) -> NcclResult {
        answer(|| {
            if value.is_null() || len.is_null() {
                return Err(invalid("ncclParamGetParameter: the place for the result is NULL"));
            }
            // SAFETY: the caller's promise.
            let found = &ENTRIES[unsafe { find(key) }?].value;
            // SAFETY: the caller's promise.
            unsafe { len.write(found.count_bytes() as c_int) };
            // SAFETY: the caller's promise.
            unsafe { value.write(found.as_ptr()) };
            Ok(())
        })
    }

    /// `ncclParamGetAllParameterKeys`
    fn ncclParamGetAllParameterKeys(table: *mut *mut *const c_char, len: *mut c_int) -> NcclResult {
        answer(|| {
            if table.is_null() || len.is_null() {
                return Err(invalid("ncclParamGetAllParameterKeys: the place for the result is NULL"));
            }
            // SAFETY: the caller's promise.
            unsafe { table.write(KEYS.0.as_ptr().cast_mut()) };
            // SAFETY: the caller's promise.
            unsafe { len.write(KEYS.0.len() as c_int) };
            Ok(())
        })
    }

    /// `ncclParamDumpAll`: to standard output.
    fn ncclParamDumpAll() {
        answer(|| {
            for Entry { key, value, origin, .. } in ENTRIES.iter() {
                println!("{} = {} ({origin})", key.display(), value.display());
            }
            Ok(())
        });
    }
}
