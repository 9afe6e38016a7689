//! How much stack the programs' calls may take together, by the rule of the oldest kernels.
//!
//! The verifier adds up the frames of each chain of calls, each rounded up, and refuses more than 512 bytes. Old kernels
//! round to 32 bytes and newer ones, where programs are compiled, to 16: a developer's kernel takes what 5.10 refuses.
//! Here the old rule is applied to the object itself, in no time and on any kernel.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use object::read::elf::ElfFile64;
use object::{LittleEndian, Object as _, ObjectSection as _, ObjectSymbol as _, RelocationTarget, SymbolKind};

/// What all frames of a chain of calls may take, in bytes: `MAX_BPF_STACK`.
pub const LIMIT: usize = 512;

/// What each frame is rounded up to, in bytes.
const ROUNDED: usize = 32;

/// Opcodes and their classes (Documentation/bpf/standardization/instruction-set.rst).
const LOAD_CONSTANT: u8 = 0x18;
const MOVE: u8 = 0xbf;
const ADD_CONSTANT: u8 = 0x07;
const CALL: u8 = 0x85;
const CLASS: u8 = 0x07;
const CLASS_LOAD: u8 = 1;
const CLASS_STORES: [u8; 2] = [2, 3];
const CLASSES_WITH_RESULT: [u8; 4] = [0, 1, 4, 7];
/// A call of a function of the program, and not of a helper.
const PSEUDO_CALL: u8 = 1;
const FRAME_POINTER: u8 = 10;
const INSTRUCTION: usize = 8;

/// Where a function begins: a section, and a place in it.
type Place = (usize, u64);

#[derive(Debug)]
struct Function {
    name: String,
    frame: usize,
    calls: Vec<Place>,
}

/// The most expensive chain of calls of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// All frames together, each rounded up.
    pub bytes: usize,
    /// Functions with the size of their frames, the program first.
    pub functions: Vec<(String, usize)>,
}

/// The deepest chain of each program of a section of an object.
///
/// # Errors
/// It is no ELF file for BPF, or functions call each other in a circle.
pub fn deepest(object: &[u8], section: &str) -> Result<Vec<Chain>> {
    let file = ElfFile64::<LittleEndian>::parse(object).context("an ELF file")?;
    let functions = functions(&file)?;
    let programs = file.section_by_name(section).with_context(|| format!("no section {section}"))?.index().0;
    let mut known = BTreeMap::new();
    let starts: Vec<Place> = functions.keys().copied().filter(|(of, _)| *of == programs).collect();
    starts.iter().map(|start| chain(&functions, *start, &mut known, 0)).collect()
}

fn chain(
    functions: &BTreeMap<Place, Function>,
    start: Place,
    known: &mut BTreeMap<Place, Chain>,
    depth: usize,
) -> Result<Chain> {
    if let Some(chain) = known.get(&start) {
        return Ok(chain.clone());
    }
    let function = functions.get(&start).with_context(|| format!("nothing is called at {start:?}"))?;
    ensure!(depth <= functions.len(), "{} is part of a circle of calls", function.name);
    let mut below = Chain { bytes: 0, functions: Vec::new() };
    for call in &function.calls {
        let other = chain(functions, *call, known, depth + 1)?;
        if other.bytes > below.bytes {
            below = other;
        }
    }
    let mut deepest = Chain {
        bytes: function.frame.max(1).next_multiple_of(ROUNDED) + below.bytes,
        functions: vec![(function.name.clone(), function.frame)],
    };
    deepest.functions.extend(below.functions);
    known.insert(start, deepest.clone());
    Ok(deepest)
}

fn functions(file: &ElfFile64<'_, LittleEndian>) -> Result<BTreeMap<Place, Function>> {
    let mut functions = BTreeMap::new();
    for symbol in file.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text) {
        let Some(index) = symbol.section_index() else { continue };
        let section = file.section_by_index(index).context("a symbol's section")?;
        let (begin, size) = (usize::try_from(symbol.address())?, usize::try_from(symbol.size())?);
        let code = section.data().context("a section's content")?;
        let code = code.get(begin..begin + size).with_context(|| format!("{:?} is cut off", symbol.name()))?;
        // Where a call goes that the linker has left to the loader: a function, or a section and a place in it.
        let mut targets = BTreeMap::new();
        for (at, relocation) in section.relocations() {
            if let RelocationTarget::Symbol(index) = relocation.target() {
                let target = file.symbol_by_index(index).context("a relocation's symbol")?;
                if let Some(section) = target.section_index() {
                    targets.insert(at, (section.0, target.address(), target.kind() == SymbolKind::Section));
                }
            }
        }
        let (frame, calls) = read(code, (index.0, symbol.address()), &targets)?;
        let name = symbol.name().context("a function's name")?.to_owned();
        functions.insert((index.0, symbol.address()), Function { name, frame, calls });
    }
    Ok(functions)
}

/// The size of a function's frame, and the functions that it calls.
///
/// The compiler reaches its frame by the frame pointer, or by copies of it that it has subtracted a constant from.
fn read(code: &[u8], place: Place, targets: &BTreeMap<u64, (usize, u64, bool)>) -> Result<(usize, Vec<Place>)> {
    let (section, begin) = place;
    let mut pointers = BTreeMap::from([(FRAME_POINTER, 0_i64)]);
    let (mut lowest, mut calls) = (0_i64, Vec::new());
    let mut index = 0_usize;
    while let Some(instruction) = code.get(index * INSTRUCTION..(index + 1) * INSTRUCTION) {
        let [opcode, registers, low, high, a, b, c, d] = <[u8; INSTRUCTION]>::try_from(instruction)?;
        let (destination, source) = (registers & 0xf, registers >> 4);
        let offset = i64::from(i16::from_le_bytes([low, high]));
        let constant = i64::from(i32::from_le_bytes([a, b, c, d]));
        let class = opcode & CLASS;
        match (opcode, pointers.get(&source), pointers.get(&destination)) {
            (MOVE, Some(from), _) => {
                let from = *from;
                pointers.insert(destination, from);
            }
            (ADD_CONSTANT, _, Some(from)) => {
                let sum = from + constant;
                lowest = lowest.min(sum);
                pointers.insert(destination, sum);
            }
            _ => {
                let touches_frame = class == CLASS_LOAD && source == FRAME_POINTER
                    || CLASS_STORES.contains(&class) && destination == FRAME_POINTER;
                if touches_frame {
                    lowest = lowest.min(offset);
                }
                if CLASSES_WITH_RESULT.contains(&class) {
                    pointers.remove(&destination);
                }
            }
        }
        if opcode == CALL && source == PSEUDO_CALL {
            let at = begin + (index * INSTRUCTION) as u64;
            // Calls count in instructions, from the one that follows.
            let to = |from: u64| u64::try_from(i64::try_from(from)? + (constant + 1) * INSTRUCTION as i64);
            calls.push(match targets.get(&at) {
                Some((section, _, true)) => (*section, to(0)?),
                Some((section, address, false)) => (*section, *address),
                None => (section, to(at)?),
            });
        }
        index += if opcode == LOAD_CONSTANT { 2 } else { 1 };
    }
    Ok((usize::try_from(-lowest)?, calls))
}
