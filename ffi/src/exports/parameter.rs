//! The parameter API: the settings of the library in this process, by name.
//!
//! A name is that of the environment variable, with or without `NCCL_`. A handle is the position of
//! a setting in the table. An integer setting is returned by every accessor whose type can hold it;
//! every setting is returned as text. `ncclParamGet` writes an integer as eight bytes, and any
//! other setting as text without a zero at its end.

use std::borrow::Cow;
use std::ffi::{CStr, CString, c_char, c_int, c_void};

use maypole::ResultCode;
use maypole::config::{self, SettingOrigin};
use maypole::internal::process::LazyValue;

use super::macros::abi;
use crate::boundary::{NcclResult, guarded, invalid_argument, write_result};

/// `ncclParamHandle_t` as the client holds it: a number in the shape of a pointer.
type ParamHandle = *mut c_void;

/// A setting, as text that the client may keep.
struct Parameter {
    key: CString,
    value: CString,
    /// The value, if it is an integer.
    integer: Option<i64>,
    origin: SettingOrigin,
}

/// The names of all settings, as `ncclParamGetAllParameterKeys` returns them.
struct KeyTable(Vec<*const c_char>);

// SAFETY: the pointers are to the names in `PARAMETERS`, which never change.
unsafe impl Send for KeyTable {}
// SAFETY: as above.
unsafe impl Sync for KeyTable {}

static PARAMETERS: LazyValue<Vec<Parameter>> = LazyValue::new(|| {
    let text = |text: &str| CString::new(text.replace('\0', " ")).unwrap_or_default();
    let parameter = |row: &config::Variable| {
        let (value, origin) = config::lookup(row.name)
            .unwrap_or_else(|| (row.default.to_owned(), SettingOrigin::Default));
        let integer = config::integer(&value);
        Parameter { key: text(row.name), integer, value: text(&value), origin }
    };
    config::table().map(parameter).collect()
});

static KEYS: LazyValue<KeyTable> = LazyValue::new(|| {
    KeyTable(PARAMETERS.iter().map(|parameter| parameter.key.as_ptr()).collect())
});

impl Parameter {
    fn key_text(&self) -> Cow<'_, str> {
        self.key.to_string_lossy()
    }

    fn value_text(&self) -> Cow<'_, str> {
        self.value.to_string_lossy()
    }
}

/// The position of the setting with that name.
///
/// # Safety
/// `key` is NULL or ends in a zero.
unsafe fn find(key: *const c_char) -> Result<usize, ResultCode> {
    if key.is_null() {
        return Err(invalid_argument("the name of the parameter is NULL"));
    }
    // SAFETY: the caller promises a name that ends in a zero.
    let key = unsafe { CStr::from_ptr(key) }.to_string_lossy();
    let has_name = |parameter: &Parameter| {
        let name = parameter.key_text();
        name == key || name.strip_prefix("NCCL_") == Some(&*key)
    };
    PARAMETERS.iter().position(has_name).ok_or_else(|| {
        invalid_argument(&format!(
            "there is no parameter {key}; ncclParamGetAllParameterKeys lists all parameters"
        ))
    })
}

/// The setting of a handle.
fn parameter(handle: ParamHandle) -> Result<&'static Parameter, ResultCode> {
    let position = (handle.addr() >> 4).checked_sub(1);
    let position = position.filter(|_| handle.addr() & 0xf == 0);
    position.and_then(|position| PARAMETERS.get(position)).ok_or_else(|| {
        invalid_argument("the handle is none of a parameter; ncclParamBind returns one")
    })
}

/// Writes an integer setting to `out`.
///
/// # Safety
/// `out` is NULL or writable.
unsafe fn write_integer<T: TryFrom<i64>>(handle: ParamHandle, out: *mut T) -> NcclResult {
    let integer = || {
        let parameter = parameter(handle)?;
        parameter.integer.and_then(|integer| T::try_from(integer).ok()).ok_or_else(|| {
            invalid_argument(&format!(
                "{} is {}, which the type cannot hold",
                parameter.key_text(),
                parameter.value_text()
            ))
        })
    };
    // SAFETY: the caller promises that `out` is NULL or writable.
    guarded(|| unsafe { write_result("ncclParamGet*", out, integer) })
}

/// Refuses a pointer for a result that is NULL.
fn check_results<T>(function: &str, result: *const T, len: *const c_int) -> Result<(), ResultCode> {
    if result.is_null() || len.is_null() {
        return Err(invalid_argument(&format!("{function}: a pointer for a result is NULL")));
    }
    Ok(())
}

macro_rules! integer_accessors {
    ($($name:ident $type:ty),*) => {
        abi! {$(
            /// The integer, if the type can hold it.
            fn $name(handle: ParamHandle, out: *mut $type) -> NcclResult {
                // SAFETY: the client promised that `out` is NULL or writable.
                unsafe { write_integer(handle, out) }
            }
        )*}
    };
}

integer_accessors!(
    ncclParamGetI8 i8, ncclParamGetI16 i16, ncclParamGetI32 i32, ncclParamGetI64 i64,
    ncclParamGetU8 u8, ncclParamGetU16 u16, ncclParamGetU32 u32, ncclParamGetU64 u64
);

abi! {
    /// `ncclParamBind`: the handle of a setting.
    fn ncclParamBind(out: *mut ParamHandle, key: *const c_char) -> NcclResult {
        let bind = || {
            // SAFETY: the client promised a name that ends in a zero.
            let position = unsafe { find(key) }?;
            Ok(std::ptr::without_provenance_mut((position + 1) << 4))
        };
        // SAFETY: the client promised that `out` is NULL or writable.
        guarded(|| unsafe { write_result("ncclParamBind", out, bind) })
    }

    /// `ncclParamGetStr`: the value as text.
    fn ncclParamGetStr(handle: ParamHandle, out: *mut *const c_char) -> NcclResult {
        let value = || Ok(parameter(handle)?.value.as_ptr());
        // SAFETY: the client promised that `out` is NULL or writable.
        guarded(|| unsafe { write_result("ncclParamGetStr", out, value) })
    }

    /// `ncclParamGet`: the value as eight bytes of integer, or as text.
    fn ncclParamGet(
        handle: ParamHandle,
        out: *mut c_void,
        capacity: c_int,
        len: *mut c_int,
    ) -> NcclResult {
        guarded(|| {
            let parameter = parameter(handle)?;
            check_results("ncclParamGet", out, len)?;
            let integer = parameter.integer.map(i64::to_ne_bytes);
            let bytes = integer.as_ref().map_or(parameter.value.as_bytes(), |bytes| &bytes[..]);
            // SAFETY: the client promised that `len` is writable, and it is not NULL.
            unsafe { len.write(bytes.len() as c_int) };
            if usize::try_from(capacity).is_ok_and(|capacity| capacity >= bytes.len()) {
                // SAFETY: the client promised that `out` is writable for `capacity` bytes.
                unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), out.cast(), bytes.len()) };
                return Ok(());
            }
            Err(invalid_argument(&format!(
                "ncclParamGet: {} needs {} bytes, but there is room for {capacity}",
                parameter.key_text(),
                bytes.len()
            )))
        })
    }

    /// `ncclParamGetParameter`: the value of the setting with that name, as text.
    fn ncclParamGetParameter(
        key: *const c_char,
        value: *mut *const c_char,
        len: *mut c_int,
    ) -> NcclResult {
        guarded(|| {
            check_results("ncclParamGetParameter", value, len)?;
            // SAFETY: the client promised a name that ends in a zero.
            let found = &PARAMETERS[unsafe { find(key) }?].value;
            // SAFETY: the client promised that both are writable, and they are not NULL.
            unsafe {
                len.write(found.count_bytes() as c_int);
                value.write(found.as_ptr());
            }
            Ok(())
        })
    }

    /// `ncclParamGetAllParameterKeys`: the names of all settings.
    fn ncclParamGetAllParameterKeys(table: *mut *mut *const c_char, len: *mut c_int) -> NcclResult {
        guarded(|| {
            check_results("ncclParamGetAllParameterKeys", table, len)?;
            // SAFETY: the client promised that both are writable, and they are not NULL.
            unsafe {
                table.write(KEYS.0.as_ptr().cast_mut());
                len.write(KEYS.0.len() as c_int);
            }
            Ok(())
        })
    }

    /// `ncclParamDumpAll`: prints all settings to standard output.
    fn ncclParamDumpAll() {
        guarded(|| {
            for parameter in PARAMETERS.iter() {
                let (key, value) = (parameter.key_text(), parameter.value_text());
                println!("{key} = {value} ({})", parameter.origin);
            }
            Ok(())
        });
    }
}
