// Which instruction set the CPU kernels use. Chosen once from cpuid; tests force a lower level.
#pragma once

namespace vitsparse::cpu {

enum class Isa { scalar = 0, avx2 = 1, avx512 = 2 };

Isa best_isa();               // the highest level that this machine and this build have
Isa current_isa();            // the level in use
bool set_isa(Isa isa);        // false, and no change, when the machine lacks it
const char* isa_name(Isa isa);

}  // namespace vitsparse::cpu
