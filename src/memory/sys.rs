//! Blocks by classes of size, each a list of free ones a thread.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::{Cell, UnsafeCell},
    ptr,
    sync::atomic::{AtomicUsize, Ordering},
};

/// What a thread keeps of one class (bytes), but for so many blocks at least.
pub const KEPT_BYTES_MAX: usize = 4096;
pub const KEPT_BLOCKS_MIN: usize = 4;
/// The classes, in units of 16 bytes of which 4 are musl's own: its classes, so that nothing is wasted.
/// The last one holds the 8 KiB that hyper reads into.
const UNITS: [u16; CLASSES] = [
    1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 15, 18, 20, 25, 31, 36, 42, 50, 63, 72, 84, 102, 127, 146, 170, 204,
    255, 292, 340, 409, 511, 584,
];
const CLASSES: usize = 33;
/// What a monitor needs.
const FIRST_BYTES: usize = 4 << 10;
const UNITS_MAX: usize = UNITS[CLASSES - 1] as usize;
const UNIT_BYTES: usize = 16;
const OWN_BYTES: usize = 4;
/// The largest block of a class (bytes).
const BLOCK_BYTES_MAX: usize = bytes_of(CLASSES - 1);

const fn bytes_of(class: usize) -> usize {
    UNITS[class] as usize * UNIT_BYTES - OWN_BYTES
}

/// The class of so many units.
static CLASS_OF: [u8; UNITS_MAX + 1] = {
    let mut classes = [0; UNITS_MAX + 1];
    let (mut units, mut class) = (1, 0);
    while units <= UNITS_MAX {
        if units > UNITS[class] as usize {
            class += 1;
        }
        classes[units] = class as u8;
        units += 1;
    }
    classes
};

/// The class whose blocks hold this; `None` for what is large or of a wide alignment.
fn class_of(layout: Layout) -> Option<usize> {
    let is_small = layout.size() <= BLOCK_BYTES_MAX && layout.align() <= UNIT_BYTES;
    is_small.then(|| CLASS_OF[(layout.size() + OWN_BYTES).div_ceil(UNIT_BYTES)].into())
}

/// Where the first blocks of a process come from: beside its other data. A process that needs no more than
/// these touches neither a heap nor its page tables.
#[repr(align(16))]
struct First(UnsafeCell<[u8; FIRST_BYTES]>);

// SAFETY: each part is handed out once, by `take_first`.
unsafe impl Sync for First {}

static FIRST: First = First(UnsafeCell::new([0; FIRST_BYTES]));
/// How much of [`FIRST`] is handed out (bytes).
static FIRST_TAKEN: AtomicUsize = AtomicUsize::new(0);

/// A block of [`FIRST`]; `None` when too little is left.
fn take_first(class: usize) -> Option<*mut u8> {
    let bytes = usize::from(UNITS[class]) * UNIT_BYTES;
    let next = |taken: usize| Some(taken + bytes).filter(|next| *next <= FIRST_BYTES);
    let taken = FIRST_TAKEN.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).ok()?;
    // SAFETY: what was taken before ends there, within the static, and this block does too.
    Some(unsafe { FIRST.0.get().cast::<u8>().add(taken) })
}

fn is_first(block: *mut u8) -> bool {
    block.addr().wrapping_sub(FIRST.0.get().addr()) < FIRST_BYTES
}

/// What all blocks of a class are.
fn layout_of(class: usize) -> Layout {
    // SAFETY: the alignment is a power of two, and the size far from what overflows.
    unsafe { Layout::from_size_align_unchecked(bytes_of(class), UNIT_BYTES) }
}

/// The blocks that this thread keeps. A free block begins with the pointer to the next one.
struct Kept {
    keeps: Cell<bool>,
    first: [Cell<*mut u8>; CLASSES],
    count: [Cell<u16>; CLASSES],
}

thread_local! {
    // Without a destructor and made at compile time: to reach it needs no allocation.
    static KEPT: Kept = const {
        Kept {
            keeps: Cell::new(false),
            first: [const { Cell::new(ptr::null_mut()) }; CLASSES],
            count: [const { Cell::new(0) }; CLASSES],
        }
    };
}

pub fn keep() {
    KEPT.with(|kept| kept.keeps.set(true));
}

/// Takes a kept block, or a new one. Null when there is no memory.
#[expect(clippy::cast_ptr_alignment, reason = "blocks are aligned to UNIT_BYTES")]
fn take(class: usize) -> *mut u8 {
    let kept = KEPT.with(|kept| {
        let block = kept.first[class].get();
        if !block.is_null() {
            // SAFETY: a block in the list is free, large enough for a pointer and aligned for one,
            // and begins with the one that `give` has written.
            kept.first[class].set(unsafe { block.cast::<*mut u8>().read() });
            kept.count[class].set(kept.count[class].get() - 1);
        }
        block
    });
    if kept.is_null() { take_new(class) } else { kept }
}

fn take_new(class: usize) -> *mut u8 {
    // SAFETY: the size is not zero.
    take_first(class).unwrap_or_else(|| unsafe { System.alloc(layout_of(class)) })
}

/// Keeps a block, or gives it back.
///
/// # Safety
/// The block is of this class and nobody uses it any more.
unsafe fn give(block: *mut u8, class: usize) {
    let is_kept = KEPT.with(|kept| {
        let count = usize::from(kept.count[class].get());
        kept.keeps.get() && count < (KEPT_BYTES_MAX / bytes_of(class)).max(KEPT_BLOCKS_MIN)
    });
    // SAFETY: as the caller promises.
    unsafe { if is_kept { put(block, class) } else { give_back(block, class) } }
}

/// Puts a block into the list.
///
/// # Safety
/// As for [`give`].
#[expect(clippy::cast_ptr_alignment, reason = "blocks are aligned to UNIT_BYTES")]
unsafe fn put(block: *mut u8, class: usize) {
    KEPT.with(|kept| {
        // SAFETY: the block is ours now, large enough for a pointer and aligned for one.
        unsafe { block.cast::<*mut u8>().write(kept.first[class].get()) };
        kept.first[class].set(block);
        kept.count[class].set(kept.count[class].get() + 1);
    });
}

/// Gives a block back to the system; one of the first, which were not the system's, is kept.
///
/// # Safety
/// As for [`give`].
unsafe fn give_back(block: *mut u8, class: usize) {
    // SAFETY: as the caller promises; every other block of a class was allocated with its layout, in `take_new`.
    unsafe {
        if is_first(block) {
            put(block, class);
        } else {
            System.dealloc(block, layout_of(class));
        }
    }
}

struct Allocator;

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

// SAFETY: a block is in one list or in one use; it has its class's size, and the alignment of `layout_of`,
// which is at least what was asked for; what has no class goes to the system both ways, since the class
// depends on nothing but the layout.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match class_of(layout) {
            Some(class) => take(class),
            // SAFETY: as the caller promises.
            None => unsafe { System.alloc(layout) },
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        match class_of(layout) {
            // SAFETY: by its layout the block came from `take` with this class.
            Some(class) => unsafe { give(block, class) },
            // SAFETY: as the caller promises.
            None => unsafe { System.dealloc(block, layout) },
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let Some(class) = class_of(layout) else {
            // SAFETY: as the caller promises.
            return unsafe { System.alloc_zeroed(layout) };
        };
        let block = take(class);
        if !block.is_null() {
            // SAFETY: a block of the class is at least as large.
            unsafe { block.write_bytes(0, layout.size()) };
        }
        block
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller promises that the size does not overflow with this alignment.
        let wanted = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        match (class_of(layout), class_of(wanted)) {
            // SAFETY: as the caller promises.
            (None, None) => unsafe { System.realloc(block, layout, size) },
            (Some(old), Some(new)) if old == new => block,
            _ => {
                // SAFETY: the new block is as large as what is copied; the old one is not used any more.
                unsafe {
                    let new = self.alloc(wanted);
                    if !new.is_null() {
                        new.copy_from_nonoverlapping(block, layout.size().min(size));
                        self.dealloc(block, layout);
                    }
                    new
                }
            }
        }
    }
}
