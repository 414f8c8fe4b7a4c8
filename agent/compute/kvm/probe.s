.code16
.globl _start
_start:
 cli
 xorw %ax,%ax
 movw %ax,%ds
 movw %ax,%es
 movw %ax,%ss
 movw $0x7c00,%sp
 cld
 movw $0x1000,%di      /* clear 0x1000..0x5fff: page tables and IDT */
 movw $0x2800,%cx
 rep stosw
 movw $0x2003,0x1000   /* PML4[0] -> PDPT */
 movw $0x3003,0x2000   /* PDPT[0] -> PD */
 movw $0x0083,0x3000   /* PD[0] = 2 MiB page at 0 */
 movw $handler,0x5200  /* IDT[0x20] */
 movw $0x08,0x5202
 movw $0x8e00,0x5204
 lgdt gdtr
 lidt idtr
 movb $0x11,%al
 outb %al,$0x20
 movb $0x20,%al
 outb %al,$0x21
 movb $0x04,%al
 outb %al,$0x21
 movb $0x01,%al
 outb %al,$0x21
 movb $0xfe,%al
 outb %al,$0x21
 movl %cr4,%eax
 orb $0x20,%al
 movl %eax,%cr4
 movl $0x1000,%eax
 movl %eax,%cr3
 movl $0xc0000080,%ecx
 rdmsr
 orw $0x100,%ax
 wrmsr
 movl %cr0,%eax
 orl $0x80000001,%eax
 movl %eax,%cr0
 ljmp $0x08,$long
.code64
long:
 xorl %eax,%eax
 movl %eax,%ss
 sti
1: hlt
 jmp 1b
handler:
 movb $0x10,%al
 outb %al,$0xf4
2: hlt
 jmp 2b
 .balign 4
gdt: .quad 0
 .quad 0x00209a0000000000
gdtr: .word 15
 .long gdt
idtr: .word 0x20f
 .long 0x5000
.org 510
 .word 0xaa55
