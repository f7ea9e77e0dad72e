//! One `munge_ctx_t`, used for one call, and the memory that libmunge hands out.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::net::Ipv4Addr;
use std::ptr::{self, NonNull};
use std::time::{Duration, SystemTime};

use crate::{Decoded, Error, Result, ffi};

/// Owned; destroyed on drop.
pub struct Context(NonNull<ffi::Context>);

impl Context {
    pub fn new(socket: Option<&CStr>) -> Result<Self> {
        // SAFETY: munge.h: takes nothing, returns a new context or NULL.
        let context = NonNull::new(unsafe { ffi::munge_ctx_create() })
            .map(Context)
            .ok_or_else(|| Error::Other { code: 5, text: "out of memory".into() })?;
        if let Some(socket) = socket {
            // SAFETY: munge.h: MUNGE_OPT_SOCKET takes a string, which libmunge copies.
            context.check(unsafe { ffi::munge_ctx_set(context.raw(), ffi::MUNGE_OPT_SOCKET, socket.as_ptr()) })?;
        }
        Ok(context)
    }

    pub fn set_ttl(&self, ttl: Duration) -> Result<()> {
        // 0 and -1 mean "default" and "maximum" to munge: neither may come out of a short or a long duration.
        let seconds = (ttl + Duration::from_nanos(999_999_999)).as_secs().clamp(1, i32::MAX as u64) as c_int;
        // SAFETY: munge.h: MUNGE_OPT_TTL takes an int.
        self.check(unsafe { ffi::munge_ctx_set(self.raw(), ffi::MUNGE_OPT_TTL, seconds) })
    }

    pub fn restrict_to_uid(&self, uid: u32) -> Result<()> {
        if uid == u32::MAX {
            // MUNGE_UID_ANY: a restriction that restricts nothing.
            return Err(Error::Other { code: 2, text: "uid 4294967295 stands for anybody".into() });
        }
        // SAFETY: munge.h: MUNGE_OPT_UID_RESTRICTION takes a uid_t, 32 bits unsigned, passed unchanged as a variadic.
        self.check(unsafe { ffi::munge_ctx_set(self.raw(), ffi::MUNGE_OPT_UID_RESTRICTION, uid) })
    }

    pub fn encode(&self, payload: &[u8]) -> Result<String> {
        let mut text: *mut c_char = ptr::null_mut();
        // SAFETY: munge.h: reads `len` bytes at `buf` (the caller bounds it far below INT_MAX), stores a new string or
        // NULL in `cred`.
        let code = unsafe { ffi::munge_encode(&mut text, self.raw(), payload.as_ptr().cast(), payload.len() as c_int) };
        let text = Allocated(text.cast());
        self.check(code)?;
        if text.0.is_null() {
            return Err(Error::Other { code, text: "libmunge returned no credential".into() });
        }
        // SAFETY: munge.h: on success `cred` is a NUL-terminated string; `text` keeps it until the end of this scope.
        let bytes = unsafe { CStr::from_ptr(text.0.cast()) };
        bytes
            .to_str()
            .map(str::to_owned)
            .map_err(|_| Error::Other { code, text: "libmunge's credential is not text".into() })
    }

    pub fn decode(&self, credential: &CString) -> Result<Decoded> {
        let mut buffer: *mut c_void = ptr::null_mut();
        let (mut length, mut uid, mut gid): (c_int, u32, u32) = (0, u32::MAX, u32::MAX);
        // SAFETY: munge.h: reads a NUL-terminated string; every out pointer is valid for its type (uid_t and gid_t have
        // 32 bits on Linux); `buf` receives memory that is ours to free, also for some errors, or NULL.
        let code =
            unsafe { ffi::munge_decode(credential.as_ptr(), self.raw(), &mut buffer, &mut length, &mut uid, &mut gid) };
        let buffer = Allocated(buffer);
        self.check(code)?;
        let payload = match usize::try_from(length) {
            Ok(length) if length > 0 && !buffer.0.is_null() => {
                // SAFETY: munge.h: on success `buf` holds `len` bytes; `buffer` keeps them until the end of this scope.
                unsafe { std::slice::from_raw_parts(buffer.0.cast::<u8>(), length) }.to_vec()
            }
            _ => Vec::new(),
        };
        Ok(Decoded {
            payload,
            uid,
            gid,
            encode_addr: self.encode_addr()?,
            encode_time: self.encode_time()?,
            ttl: self.ttl()?,
        })
    }

    fn encode_addr(&self) -> Result<Option<Ipv4Addr>> {
        // struct in_addr: four bytes in network order.
        let mut octets = [0u8; 4];
        // SAFETY: munge.h: MUNGE_OPT_ADDR4 stores a struct in_addr, four bytes without padding, through the pointer.
        self.check(unsafe { ffi::munge_ctx_get(self.raw(), ffi::MUNGE_OPT_ADDR4, octets.as_mut_ptr()) })?;
        let address = Ipv4Addr::from(octets);
        Ok((!address.is_unspecified()).then_some(address))
    }

    fn encode_time(&self) -> Result<SystemTime> {
        let mut seconds: ffi::Time = 0;
        // SAFETY: munge.h: MUNGE_OPT_ENCODE_TIME stores a time_t through the pointer.
        self.check(unsafe { ffi::munge_ctx_get(self.raw(), ffi::MUNGE_OPT_ENCODE_TIME, &mut seconds) })?;
        u64::try_from(seconds)
            .ok()
            .and_then(|seconds| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds)))
            .ok_or_else(|| Error::BadCred("its time is before 1970".into()))
    }

    fn ttl(&self) -> Result<Duration> {
        let mut seconds: c_int = 0;
        // SAFETY: munge.h: MUNGE_OPT_TTL stores an int through the pointer.
        self.check(unsafe { ffi::munge_ctx_get(self.raw(), ffi::MUNGE_OPT_TTL, &mut seconds) })?;
        Ok(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
    }

    fn raw(&self) -> *mut ffi::Context {
        self.0.as_ptr()
    }

    fn check(&self, code: c_int) -> Result<()> {
        if code == ffi::EMUNGE_SUCCESS {
            return Ok(());
        }
        // SAFETY: munge.h: both return NULL or a string that lives as long as the context, or for ever; it is copied
        // here, before any other call.
        let text = unsafe {
            let mut text = ffi::munge_ctx_strerror(self.raw());
            if text.is_null() {
                text = ffi::munge_strerror(code);
            }
            if text.is_null() { c"unknown error" } else { CStr::from_ptr(text) }
        };
        Err(Error::from_code(code, text.to_string_lossy().into_owned()))
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: made by munge_ctx_create, destroyed once; strings it owned were copied.
        unsafe { ffi::munge_ctx_destroy(self.raw()) }
    }
}

/// Memory from libmunge, or NULL.
struct Allocated(*mut c_void);

impl Drop for Allocated {
    fn drop(&mut self) {
        // SAFETY: munge.h leaves the memory to the caller, from malloc(3); free(3) takes NULL too.
        unsafe { ffi::free(self.0) }
    }
}
