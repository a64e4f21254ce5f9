//! The scale and zero point of each group: where they come from, and how they are chosen.

use crate::error::Fault;
use crate::grid::Block;
use crate::numeric::{self, BFloat16, Codes, Element, Float16, Float32, choose_params};
use crate::rows::take_mut;
use crate::simd::multiversion;

/// Groups whose parameters are chosen at once.
const BATCH: usize = 128;

/// The dtype that scales are stored in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScaleDtype {
    /// IEEE binary32.
    Float32,
    /// IEEE binary16.
    Float16,
    /// The upper half of a binary32.
    BFloat16,
}

impl ScaleDtype {
    /// The nearest number of this dtype.
    #[must_use]
    pub fn round(self, x: f32) -> f32 {
        match self {
            Self::Float32 => x,
            Self::Float16 => Float16::widen(Float16::narrow(x)),
            Self::BFloat16 => BFloat16::widen(BFloat16::narrow(x)),
        }
    }
}

/// Where the scale and zero point of each group come from, or go to. Without zero points they are
/// all 0.
#[derive(Debug)]
pub enum Params<'a> {
    /// Known beforehand.
    Given(Given<'a>),
    /// To be chosen from the range of each group, and written here.
    Choose {
        /// The dtype that the scale is rounded to.
        scale_dtype: ScaleDtype,
        /// One scale for each group.
        scale: &'a mut [f32],
        /// One zero point for each group.
        zero_point: Option<&'a mut [i32]>,
    },
}

/// Where scales without zero points come from, or go to; `R` is the rule by which they are chosen.
#[derive(Debug)]
pub enum Scales<'a, R> {
    /// There are none.
    Absent,
    /// Known beforehand.
    Given(&'a [f32]),
    /// To be chosen from the range of each group, and written here.
    Choose(R, &'a mut [f32]),
}

/// The scale and zero point of each group.
#[derive(Clone, Copy, Debug)]
pub struct Given<'a> {
    /// One scale for each group.
    pub scale: &'a [f32],
    /// One zero point for each group.
    pub zero_point: Option<&'a [i32]>,
}

/// Where parameters that are chosen go.
pub(crate) struct Chosen<'a> {
    pub(crate) scale: &'a mut [f32],
    pub(crate) zero_point: Option<&'a mut [i32]>,
}

impl<'a> Chosen<'a> {
    /// Cuts off the places of the first `groups`.
    pub(crate) fn take(&mut self, groups: usize) -> Chosen<'a> {
        let zero_point = self.zero_point.as_mut().map(|rest| take_mut(rest, groups));
        Chosen { scale: take_mut(&mut self.scale, groups), zero_point }
    }

    /// The places of `n` groups from `first` on.
    pub(crate) fn part(&mut self, first: usize, n: usize) -> Chosen<'_> {
        let zero_point = self.zero_point.as_deref_mut().map(|all| &mut all[first..first + n]);
        Chosen { scale: &mut self.scale[first..first + n], zero_point }
    }

    pub(crate) fn given(&self) -> Given<'_> {
        Given { scale: self.scale, zero_point: self.zero_point.as_deref() }
    }

    pub(crate) fn into_given(self) -> Given<'a> {
        Given { scale: self.scale, zero_point: self.zero_point.map(|zero_point| &*zero_point) }
    }
}

impl Given<'_> {
    /// Those of the groups of a block.
    pub(crate) fn of(self, block: &Block) -> Self {
        Self {
            scale: &self.scale[block.groups.clone()],
            zero_point: self.zero_point.map(|zero_point| &zero_point[block.groups.clone()]),
        }
    }

    /// Those of one group.
    #[inline(always)]
    pub(crate) fn group(self, group: usize) -> (f32, i32) {
        (self.scale[group], self.zero_point.map_or(0, |zero_point| zero_point[group]))
    }
}

/// The scale and zero point of groups with the ranges `lo`, `hi`; zero points are all 0, and need
/// no place, where the codes are symmetric.
///
/// # Errors
/// The first group whose scale overflows its dtype, or whose extreme codes decode to an infinity.
pub fn choose_qparams_affine(
    lo: &[f32],
    hi: &[f32],
    codes: Codes,
    scale_dtype: ScaleDtype,
    scale: &mut [f32],
    mut zero_point: Option<&mut [i32]>,
) -> Result<(), Fault> {
    assert_eq!((lo.len(), hi.len()), (scale.len(), scale.len()));
    assert!(zero_point.as_ref().is_none_or(|zero_point| zero_point.len() == scale.len()));
    let choose = match scale_dtype {
        ScaleDtype::Float32 => choose_groups::<Float32>,
        ScaleDtype::Float16 => choose_groups::<Float16>,
        ScaleDtype::BFloat16 => choose_groups::<BFloat16>,
    };
    let mut unused = [0; BATCH];
    for start in (0..scale.len()).step_by(BATCH) {
        let batch = start..scale.len().min(start + BATCH);
        let zero_point = match zero_point.as_deref_mut() {
            Some(zero_point) => &mut zero_point[batch.clone()],
            None => &mut unused[..batch.len()],
        };
        let scale = &mut scale[batch.clone()];
        choose(&lo[batch.clone()], &hi[batch], codes, scale, zero_point)
            .map_err(|fault| fault.after(start))?;
    }
    Ok(())
}

multiversion! {
    fn choose_groups<S: Element>(
        lo: &[f32], hi: &[f32], codes: Codes, scale: &mut [f32], zero_point: &mut [i32],
    ) -> Result<(), Fault> {
        let choose = |(&lo, &hi)| choose_params::<S>(lo, hi, codes);
        let mut faulty = false;
        for ((range, scale), zero_point) in lo.iter().zip(hi).zip(&mut *scale).zip(zero_point) {
            let params: numeric::Chosen = choose(range);
            (*scale, *zero_point) = (params.scale, params.zero_point);
            faulty |= params.scale_overflow | params.decode_overflow;
        }
        if faulty { first_fault(lo.iter().zip(hi).map(choose)) } else { Ok(()) }
    }
}

/// The fault of the first group that has one.
pub(crate) fn first_fault(groups: impl Iterator<Item = numeric::Chosen>) -> Result<(), Fault> {
    for (group, chosen) in groups.enumerate() {
        if chosen.scale_overflow {
            return Err(Fault::ScaleOverflow { group });
        }
        if chosen.decode_overflow {
            return Err(Fault::DecodeOverflow { group });
        }
    }
    Ok(())
}
