variable "name" {
  type = string
}

variable "region" {
  type = string
}

variable "network" {
  description = "The network, once its managed range is peered."
  type        = string
}

variable "memory_gb" {
  type = number
}

variable "highly_available" {
  type    = bool
  default = true
}

variable "protect" {
  type    = bool
  default = true
}
